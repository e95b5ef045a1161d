from .case_runner import run_cases as run_cases
