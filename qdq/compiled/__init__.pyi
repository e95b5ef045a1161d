from .library import Library as Library
from .library import describe_path as describe_path
from .library import find_library as find_library
