from .facts import Scene as Scene
from .kernel_tables import KernelTable as KernelTable
from .rule import Rule as Rule
from .rule import RuleSet as RuleSet
from .rule_files import load_rules as load_rules
