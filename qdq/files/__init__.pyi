from .command_files import command_files as command_files
from .command_files import note_input as note_input
from .output import (
    atomic_file as atomic_file,
)
from .output import (
    check_output as check_output,
)
from .output import (
    write_atomic as write_atomic,
)
from .strict_yaml import read_yaml as read_yaml
