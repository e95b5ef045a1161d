from .index import Edge as Edge
from .index import GraphIndex as GraphIndex
from .index import Node as Node
from .loader import load as load
from .shape_profiles import Profile as Profile
from .shape_profiles import parse_profile as parse_profile
from .source import ModelLike as ModelLike
from .source import Source as Source
