from .feeds import (
    NOISE as NOISE,
)
from .feeds import (
    DataLike as DataLike,
)
from .feeds import (
    Feeds as Feeds,
)
from .feeds import (
    Subset as Subset,
)
from .feeds import (
    open_feeds as open_feeds,
)
from .images import Images as Images
