from .session import Progress as Progress
from .session import open_session as open_session
from .session import run_sample as run_sample
