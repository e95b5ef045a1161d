/* Statistics of tensors, and the search for the scales of weights.

The functions give the same bytes as the numpy code of qdq/observers/tensor_statistics.py and
qdq/calibration/weight_scales.py, which is in use where this file is not compiled. They are C11,
need no other library, and keep no state: a call with arrays of its own is safe in any thread.

Every body is compiled once for any processor, and on x86-64 once more for AVX2. Both have the same
operations in the same order, so the processor does not change a result. The file must be compiled
without -ffast-math and with -ffp-contract=off. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic must not be wider than float"
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#else
#define INLINE static inline
#define EXPORT
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2_BUILD 1
#define AVX2 __attribute__((target("avx2")))
#else
#define HAS_AVX2_BUILD 0
#endif

/* A digest of this file: Python refuses a library of another source. */
#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST ""
#endif

/* As in qdq/ranges/histogram.py. */
#define BINS 4096
#define LOG_BINS 12
#define LEAST_EXPONENT (-120)

/* The counters of each bin, which neighbouring values take in turn: a core waits where the same
counter is incremented twice in a row. */
#define COUNTERS 4

/* As in qdq/lane_sums.py: a value is added to the lane of its position. */
#define LANES 1024
#define SPAN (LANES * LANES)

/* The values that are measured at a time, few enough for the fastest cache. */
#define BLOCK LANES

/* The channels that are transposed at a time, one line of a cache, and the values of each. */
#define COLUMNS 16
#define TILE 256

/* The bytes of a line of a cache: a store across two of them takes twice as long. */
#define CACHE_LINE 64

/* The bits of infinity; a NaN has larger ones. */
#define INFINITE 0x7f800000
#define MAGNITUDE 0x7fffffff
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127

/* 1.5 * 2**23: a float of a smaller magnitude is rounded to an integer, ties to even, by adding
it. */
#define ROUNDER 12582912.0f

enum { ELEMENT_INT8 = 0, ELEMENT_E4M3 = 1 };

/* The values of one grade so far: those of the channels of about the same importance. */
typedef struct {
    uint32_t *counters; /* [COUNTERS][BINS] */
    int32_t exponent;   /* log2 of the bin width; meaningless while `largest` is 0 */
    int32_t largest;    /* the bits of the largest magnitude */
} Grade;

/* The sums of one row's lanes. */
typedef struct {
    float values[LANES];
    float squares[LANES];
} Lanes;

/* A tensor and its results; `grades` and `sums` may be null. */
typedef struct {
    const float *values;
    int64_t outer, channels, inner;
    const int32_t *grade_of_channel;
    Grade *grades;
    int is_counting;
    float *sums, *squares; /* [outer, channels] */
    Lanes *lanes;          /* [2, COLUMNS] to calculate in */
} Tensor;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int32_t to_bits(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float from_bits(int32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float power_of_two(int32_t exponent)
{
    return from_bits((exponent + EXPONENT_BIAS) << MANTISSA_BITS);
}

/* Return the bits of the largest magnitude; they order like the magnitudes, NaN last. */
INLINE int32_t find_largest(const float *values, int64_t size)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < size; i++) {
        int32_t bits = to_bits(values[i]) & MAGNITUDE;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* Join each 2**doublings neighbouring bins. */
INLINE void fold_bins(uint32_t *counts, int32_t doublings)
{
    int shift = doublings < LOG_BINS ? doublings : LOG_BINS;
    for (int bin = 1; bin < BINS; bin++) {
        uint32_t count = counts[bin];
        counts[bin] = 0;
        counts[bin >> shift] += count;
    }
}

/* Widen the bins of a grade until a finite value fits. */
INLINE void extend_bins(Grade *grade, int32_t largest)
{
    int32_t exponent = (largest >> MANTISSA_BITS) - (EXPONENT_BIAS - 1) - LOG_BINS;
    if (exponent < LEAST_EXPONENT)
        exponent = LEAST_EXPONENT;
    if (grade->largest == 0) {
        grade->exponent = exponent;
    } else if (exponent > grade->exponent) {
        for (int i = 0; i < COUNTERS; i++)
            fold_bins(grade->counters + i * BINS, exponent - grade->exponent);
        grade->exponent = exponent;
    }
}

/* Count at most BLOCK values; each magnitude times the scale is below BINS. */
INLINE void count_block(const float *restrict values, int64_t size, float scale,
                        uint32_t *restrict counters)
{
    int32_t bins[BLOCK];
    for (int64_t i = 0; i < size; i++)
        bins[i] = (int32_t)(fabsf(values[i]) * scale);
    int64_t i = 0;
    for (; i + COUNTERS <= size; i += COUNTERS) {
        counters[bins[i]]++;
        counters[BINS + bins[i + 1]]++;
        counters[2 * BINS + bins[i + 2]]++;
        counters[3 * BINS + bins[i + 3]]++;
    }
    for (; i < size; i++)
        counters[bins[i]]++;
}

/* Add at most LANES values and their squares to lanes, or start the lanes with them. */
INLINE void add_to_lanes(const float *restrict values, int64_t size, float *restrict sums,
                         float *restrict squares, int is_first)
{
    if (is_first) {
        for (int64_t i = 0; i < size; i++) {
            sums[i] = values[i];
            squares[i] = values[i] * values[i];
        }
    } else {
        for (int64_t i = 0; i < size; i++) {
            sums[i] += values[i];
            squares[i] += values[i] * values[i];
        }
    }
}

/* Join the lanes that are in use into the first ones. */
INLINE void join_lanes(Lanes *lanes, int64_t used)
{
    float *restrict sums = lanes->values;
    float *restrict squares = lanes->squares;
    int64_t half = 1;
    while (2 * half < used)
        half *= 2;
    for (; used > 1; used = half, half /= 2) {
        for (int64_t i = 0; i < used - half; i++) {
            sums[i] += sums[half + i];
            squares[i] += squares[half + i];
        }
    }
}

INLINE void clear_lanes(Lanes *lanes, int64_t used)
{
    memset(lanes->values, 0, (size_t)used * sizeof(float));
    memset(lanes->squares, 0, (size_t)used * sizeof(float));
}

/* Measure the largest magnitude of values, and count them. */
INLINE void measure_block(const float *values, int64_t size, Grade *grade, int is_counting)
{
    int32_t largest = find_largest(values, size);
    if (largest > grade->largest) {
        if (is_counting && largest < INFINITE)
            extend_bins(grade, largest);
        grade->largest = largest;
    }
    if (!is_counting || grade->largest >= INFINITE)
        return;
    if (grade->largest == 0)
        grade->counters[0] += (uint32_t)size;
    else
        count_block(values, size, power_of_two(-grade->exponent), grade->counters);
}

/* Join the lanes of span number `span` into a result, or into lanes of spans where there are
several. */
INLINE void end_span(Lanes *lanes, int64_t used, Lanes *spans, int64_t span, int64_t count,
                     float *sum, float *square)
{
    join_lanes(lanes, used);
    if (count > 1) {
        if (span == 0)
            clear_lanes(spans, LANES);
        spans->values[span % LANES] += lanes->values[0];
        spans->squares[span % LANES] += lanes->squares[0];
        if (span + 1 < count)
            return;
        join_lanes(spans, smaller(count, LANES));
        lanes = spans;
    }
    *sum = lanes->values[0];
    *square = lanes->squares[0];
}

INLINE Grade *find_grade(const Tensor *tensor, int64_t channel)
{
    return tensor->grades + (tensor->grade_of_channel ? tensor->grade_of_channel[channel] : 0);
}

/* Measure a row longer than a block, and its sums where there are any. */
INLINE void measure_long_row(const Tensor *tensor, const float *values, int64_t row)
{
    Grade *grade = find_grade(tensor, row % tensor->channels);
    Lanes *lanes = tensor->lanes, *spans = lanes + 1;
    int64_t inner = tensor->inner;
    int64_t span_count = (inner + SPAN - 1) / SPAN;
    for (int64_t start = 0; start < inner; start += BLOCK) {
        int64_t size = smaller(BLOCK, inner - start);
        int64_t end = start + size;
        measure_block(values + start, size, grade, tensor->is_counting);
        if (!tensor->sums)
            continue;
        add_to_lanes(values + start, size, lanes->values, lanes->squares, start % SPAN == 0);
        if (end % SPAN == 0 || end == inner)
            end_span(lanes, smaller(end - start / SPAN * SPAN, LANES), spans, start / SPAN,
                     span_count, tensor->sums + row, tensor->squares + row);
    }
}

/* Measure rows that fit into a block together; they have one grade. */
INLINE void measure_short_rows(const Tensor *tensor, const float *values, int64_t first,
                               int64_t count)
{
    int64_t inner = tensor->inner;
    Lanes *lanes = tensor->lanes;
    measure_block(values, count * inner, find_grade(tensor, first % tensor->channels),
                  tensor->is_counting);
    if (!tensor->sums)
        return;
    for (int64_t row = first; row < first + count; row++, values += inner) {
        add_to_lanes(values, inner, lanes->values, lanes->squares, 1);
        join_lanes(lanes, inner);
        tensor->sums[row] = lanes->values[0];
        tensor->squares[row] = lanes->squares[0];
    }
}

/* Measure a tensor [outer, channels, inner]. */
INLINE void measure_rows(const Tensor *tensor)
{
    int64_t rows = tensor->outer * tensor->channels;
    int64_t most = tensor->inner > 0 ? BLOCK / tensor->inner : 0;
    int64_t count;
    for (int64_t row = 0; row < rows; row += count) {
        const float *values = tensor->values + row * tensor->inner;
        count = 1;
        if (most == 0) {
            measure_long_row(tensor, values, row);
            continue;
        }
        Grade *grade = find_grade(tensor, row % tensor->channels);
        while (count < most && row + count < rows &&
               find_grade(tensor, (row + count) % tensor->channels) == grade)
            count++;
        measure_short_rows(tensor, values, row, count);
    }
}

/* Measure some channels of a matrix [inner, channels] whose results begin at `row`. */
INLINE void measure_columns_of(const Tensor *tensor, const float *values, int64_t first,
                               int64_t width, int64_t row)
{
    float tile[COLUMNS][TILE];
    Lanes *lanes = tensor->lanes, *spans = lanes + COLUMNS;
    int64_t inner = tensor->inner;
    int64_t span_count = (inner + SPAN - 1) / SPAN;
    for (int64_t span = 0; span < span_count; span++) {
        int64_t end = smaller(inner, (span + 1) * SPAN);
        int64_t used = smaller(end - span * SPAN, LANES);
        for (int64_t start = span * SPAN; start < end; start += TILE) {
            int64_t height = smaller(TILE, end - start);
            int64_t lane = start % LANES;
            int is_first = start - span * SPAN < LANES;
            for (int64_t i = 0; i < height; i++)
                for (int64_t column = 0; column < width; column++)
                    tile[column][i] = values[(start + i) * tensor->channels + first + column];
            for (int64_t column = 0; column < width; column++) {
                measure_block(tile[column], height, find_grade(tensor, first + column),
                              tensor->is_counting);
                if (tensor->sums)
                    add_to_lanes(tile[column], height, lanes[column].values + lane,
                                 lanes[column].squares + lane, is_first);
            }
        }
        for (int64_t column = 0; tensor->sums && column < width; column++)
            end_span(&lanes[column], used, &spans[column], span, span_count,
                     tensor->sums + row + first + column, tensor->squares + row + first + column);
    }
}

/* Measure a tensor [outer, inner, channels]. */
INLINE void measure_columns(const Tensor *tensor)
{
    int64_t channels = tensor->channels;
    for (int64_t outer = 0; outer < tensor->outer; outer++)
        for (int64_t first = 0; first < channels; first += COLUMNS)
            measure_columns_of(tensor, tensor->values + outer * tensor->inner * channels, first,
                               smaller(COLUMNS, channels - first), outer * channels);
}

/* Weights, and what their scales are chosen by. */
typedef struct {
    const float *rows;
    int64_t count, width;
    const float *mean, *variance; /* [groups, width], or null for the plain error */
    const int64_t *group_of_row;
    const float *candidates; /* [candidate_count, 1 or count] */
    int64_t candidate_count, candidate_stride;
    float levels;
    float *amax; /* [count] */
} Weights;

INLINE float clip(float value, float limit)
{
    value = value > limit ? limit : value;
    return value < -limit ? -limit : value;
}

/* Return the nearest value of the type; the magnitude is below 2**20. */
INLINE float round_to_element(float value, int element)
{
    float rounder = ROUNDER;
    if (element == ELEMENT_E4M3) { /* steps of 2**-3 of the power of two, and 2**-9 near zero */
        int32_t exponent = (to_bits(value) & MAGNITUDE) >> MANTISSA_BITS;
        exponent = exponent < EXPONENT_BIAS - 6 ? EXPONENT_BIAS - 6 : exponent;
        rounder = from_bits(((exponent + MANTISSA_BITS - 3) << MANTISSA_BITS) | 0x400000);
    }
    return (value + rounder) - rounder;
}

/* Add the errors of at most LANES weights, times their mean, to one half of the lanes, and the
squared errors, times their variance, to the other. */
INLINE void add_errors(const float *restrict weights, int64_t size, float step,
                       const float *restrict mean, const float *restrict variance, int element,
                       float levels, float *restrict shifts, float *restrict spreads)
{
    float inverse = 1.0f / step;
    for (int64_t i = 0; i < size; i++) {
        float level = clip(round_to_element(weights[i] * inverse, element), levels);
        float error = level * step - weights[i];
        if (mean) {
            shifts[i] += error * mean[i];
            spreads[i] += error * error * variance[i];
        } else {
            spreads[i] += error * error;
        }
    }
}

/* Return the expected square of the output's change by one row. */
INLINE float measure_cost(const Weights *all, const float *weights, float step, const float *mean,
                          const float *variance, int element)
{
    Lanes lanes, spans;
    float shift = 0.0f, spread = 0.0f;
    int64_t span_count = (all->width + SPAN - 1) / SPAN;
    for (int64_t span = 0; span < span_count; span++) {
        int64_t end = smaller(all->width, (span + 1) * SPAN);
        int64_t used = smaller(end - span * SPAN, LANES);
        clear_lanes(&lanes, used);
        for (int64_t i = span * SPAN; i < end; i += LANES)
            add_errors(weights + i, smaller(LANES, end - i), step, mean ? mean + i : 0,
                       mean ? variance + i : 0, element, all->levels, lanes.values,
                       lanes.squares);
        end_span(&lanes, used, &spans, span, span_count, &shift, &spread);
    }
    return shift * shift + spread;
}

INLINE void search_row(const Weights *all, int64_t row, const float *mean, const float *variance,
                       int element)
{
    const float *weights = all->rows + row * all->width;
    const float *candidates = all->candidates + (all->candidate_stride > 1 ? row : 0);
    float largest = from_bits(find_largest(weights, all->width));
    float least = INFINITY;
    all->amax[row] = largest;
    if (!(largest < INFINITY))
        return;
    for (int64_t i = 0; i < all->candidate_count; i++) {
        float candidate = candidates[i * all->candidate_stride];
        float step = largest * (candidate / all->levels);
        step = step > FLT_MIN ? step : FLT_MIN;
        float cost = measure_cost(all, weights, step, mean, variance, element);
        if (cost < least) {
            least = cost;
            all->amax[row] = largest * candidate;
        }
    }
}

/* Choose the amax of each row with the least cost, the first of several. */
INLINE void search_rows(const Weights *all, int element)
{
    for (int64_t row = 0; row < all->count; row++) {
        if (all->mean) {
            int64_t start = all->group_of_row[row] * all->width;
            search_row(all, row, all->mean + start, all->variance + start, element);
        } else {
            search_row(all, row, 0, 0, element);
        }
    }
}

static void measure_rows_portable(const Tensor *tensor) { measure_rows(tensor); }
static void measure_columns_portable(const Tensor *tensor) { measure_columns(tensor); }
static void search_int8_portable(const Weights *all) { search_rows(all, ELEMENT_INT8); }
static void search_e4m3_portable(const Weights *all) { search_rows(all, ELEMENT_E4M3); }

#if HAS_AVX2_BUILD
AVX2 static void measure_rows_avx2(const Tensor *tensor) { measure_rows(tensor); }
AVX2 static void measure_columns_avx2(const Tensor *tensor) { measure_columns(tensor); }
AVX2 static void search_int8_avx2(const Weights *all) { search_rows(all, ELEMENT_INT8); }
AVX2 static void search_e4m3_avx2(const Weights *all) { search_rows(all, ELEMENT_E4M3); }

static int has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }
#define CHOOSE(avx2, name) ((avx2) ? name##_avx2 : name##_portable)
#else
static int has_avx2(void) { return 0; }
#define CHOOSE(avx2, name) ((void)(avx2), name##_portable)
#endif

EXPORT const char *qdq_source_digest(void) { return SOURCE_DIGEST; }

/* Whether the processor has AVX2, and the functions are compiled for it. */
EXPORT int32_t qdq_has_avx2(void) { return has_avx2(); }

/* Measure a tensor of finite or other floats.

`values` is [outer, channels, inner], or [outer, inner, channels] where `is_transposed`.
`grade_of_channel` is null for one grade. `largest` and `exponents` are [grades]. `counts` is
[grades, BINS], or null where nothing is counted; a grade is not counted where its largest magnitude
is not finite. `sums` is [2, outer, channels], or null: of values and of their squares. `counters`
[grades, COUNTERS, BINS] and `lanes` [2, COLUMNS, 2, LANES], CACHE_LINE bytes longer, are to
calculate in. */
EXPORT void qdq_measure_tensor(const float *values, int64_t outer, int64_t channels, int64_t inner,
                               int32_t is_transposed, const int32_t *grade_of_channel,
                               int64_t grade_count, float *largest, int32_t *exponents,
                               uint32_t *counts, float *sums, uint32_t *counters, float *lanes,
                               int32_t use_avx2)
{
    enum { MOST_GRADES = 64 };
    Grade grades[MOST_GRADES];
    if (grade_count > MOST_GRADES)
        return;
    for (int64_t i = 0; i < grade_count; i++) {
        grades[i].counters = counts ? counters + i * COUNTERS * BINS : 0;
        grades[i].exponent = 0;
        grades[i].largest = 0;
    }
    if (counts)
        memset(counters, 0, (size_t)grade_count * COUNTERS * BINS * sizeof(uint32_t));
    uintptr_t line = ((uintptr_t)lanes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    Tensor tensor = {values, outer, channels, inner, grade_of_channel, grades, counts != 0,
                     sums, sums ? sums + outer * channels : 0, (Lanes *)line};
    if (is_transposed)
        CHOOSE(use_avx2, measure_columns)(&tensor);
    else
        CHOOSE(use_avx2, measure_rows)(&tensor);
    for (int64_t i = 0; i < grade_count; i++) {
        largest[i] = from_bits(grades[i].largest);
        exponents[i] = grades[i].exponent;
        for (int64_t bin = 0; counts && bin < BINS; bin++) {
            const uint32_t *counter = grades[i].counters + bin;
            counts[i * BINS + bin] =
                counter[0] + counter[BINS] + counter[2 * BINS] + counter[3 * BINS];
        }
    }
}

/* Add counts [BINS] to totals [BINS] whose bins are 2**doublings as wide. */
EXPORT void qdq_add_counts(int64_t *totals, const uint32_t *counts, int32_t doublings)
{
    int shift = doublings < LOG_BINS ? doublings : LOG_BINS;
    for (int bin = 0; bin < BINS; bin++)
        totals[bin >> shift] += (int64_t)counts[bin];
}

/* Add float32 vectors [count, size] to exact sums [limbs, size], as qdq/ranges/exact_sum.py does;
all values must be finite. */
EXPORT void qdq_add_exactly(int64_t *limbs, const float *vectors, int64_t count, int64_t size)
{
    const uint64_t low_bits = 0xffffffff;
    const int32_t fraction_bits = (1 << MANTISSA_BITS) - 1;
    for (int64_t row = 0; row < count; row++) {
        for (int64_t i = 0; i < size; i++) {
            int32_t bits = to_bits(vectors[row * size + i]);
            int32_t exponent = (bits & MAGNITUDE) >> MANTISSA_BITS;
            int32_t mantissa = bits & fraction_bits;
            if (exponent > 0)
                mantissa |= 1 << MANTISSA_BITS;
            else
                exponent = 1;
            int32_t place = exponent + 22; /* the unit is 2**-172 */
            uint64_t integer = (uint64_t)mantissa << (place % 32);
            int64_t *limb = limbs + (place / 32) * size + i;
            if (bits < 0) {
                limb[0] += (int64_t)((0 - integer) & low_bits);
                limb[size] -= (int64_t)((integer + low_bits) >> 32);
            } else {
                limb[0] += (int64_t)(integer & low_bits);
                limb[size] += (int64_t)(integer >> 32);
            }
        }
    }
}

/* Choose the amax of each row of weights [count, width] with the least cost. */
EXPORT void qdq_search_scales(const float *rows, int64_t count, int64_t width, const float *mean,
                              const float *variance, const int64_t *group_of_row,
                              const float *candidates, int64_t candidate_count,
                              int64_t candidate_stride, float levels, int32_t is_e4m3, float *amax,
                              int32_t use_avx2)
{
    Weights all = {rows, count, width, mean, variance, group_of_row, candidates,
                   candidate_count, candidate_stride, levels, amax};
    if (is_e4m3)
        CHOOSE(use_avx2, search_e4m3)(&all);
    else
        CHOOSE(use_avx2, search_int8)(&all);
}
