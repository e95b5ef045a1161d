from .bias_correction import (
    BiasCorrection as BiasCorrection,
)
from .bias_correction import (
    BiasCorrections as BiasCorrections,
)
from .bias_correction import (
    apply_bias_corrections as apply_bias_corrections,
)
from .bias_correction import (
    find_bias_corrections as find_bias_corrections,
)
from .bias_correction import (
    read_bias_corrections as read_bias_corrections,
)
from .correction_selection import (
    SelectedCorrections as SelectedCorrections,
)
from .correction_selection import (
    select_corrections as select_corrections,
)
from .equalization import equalize as equalize
from .equalization import find_equalizations as find_equalizations
from .range_refinement import (
    RangeRefinements as RangeRefinements,
)
from .range_refinement import (
    apply_refinements as apply_refinements,
)
from .range_refinement import (
    refine_ranges as refine_ranges,
)
from .refined_range import RefinedRange as RefinedRange
