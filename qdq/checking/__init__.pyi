from .checker import check as check
from .finding import Finding as Finding
from .problem import Problem as Problem
