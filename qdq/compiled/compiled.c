/* Statistics of tensors, and the searches for ranges and for the scales of weights.

The functions give the same bytes as the numpy code of qdq/observers/tensor_statistics.py,
qdq/ranges/exact_sum.py, qdq/ranges/square_error.py and qdq/calibration/weight_scales.py, which is
in use where this file is not compiled. They are C11, need no other library, and keep no state: a
call with arrays of its own is safe in any thread.

Every body is compiled once for any processor, and on x86-64 once more for AVX2. Both have the same
float operations in the same order, so the processor does not change a result. The file must be
compiled without -ffast-math and with -ffp-contract=off. */

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
#include <immintrin.h>
#define HAS_AVX2_BUILD 1
#define AVX2 __attribute__((target("avx2,popcnt")))
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

/* The counters of a lane. Each bin has one in both lanes, which neighbouring values take in turn: a
core waits where the same counter is incremented twice in a row. Two lanes fit into the fastest
cache. The counters of a bin are not a multiple of 4096 bytes apart, for which a core takes the load
of one to depend on the store of the other. */
#define LANE (BINS + 80)

/* The most values that a lane may count. */
#define MOST_COUNTED 0xffff

/* As in qdq/ordered_sums.py: the values of a row that are added in float. */
#define SPAN 4096

/* As in qdq/ranges/exact_sum.py: the limbs of an exact sum, the bits that they are apart, and log2
of its unit. */
#define LIMBS 10
#define LIMB_BITS 32
#define LIMB_MASK INT64_C(0xffffffff)
#define EXACT_EXPONENT (-172)

/* The digits of a quotient behind its unit: the least sum has bit 23, and a count up to 32 bits, so
that 64 bits are left. */
#define SPARE 3

/* numpy's pairwise summation (numpy/core/src/umath/loops_utils.h.src): the values of a leaf are
added to lanes in turn, and a larger sum is that of two halves. */
#define LANES 8
#define LEAF 128
#define MOST_LEVELS 8

/* The values that are measured at a time, few enough for the fastest cache, and those that a line of
it holds. */
#define BLOCK 512
#define LINE 16

/* The rows and columns that are transposed at a time: a line of a cache is 16 columns. */
#define TILE_ROWS 256
#define TILE_COLUMNS 16

/* The bits of infinity; a NaN has larger ones. */
#define INFINITE 0x7f800000
#define MAGNITUDE 0x7fffffff
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127

/* 1.5 * 2**23: a float of a smaller magnitude is rounded to an integer, ties to even, by adding
it. */
#define ROUNDER 12582912.0f

enum { ELEMENT_INT8 = 0, ELEMENT_E4M3 = 1 };

/* Where the values of one grade of a sample are counted: zeros before and after. */
typedef struct {
    uint16_t first[LANE], second[LANE];
    int64_t moved[BINS]; /* the counts that were in the lanes before */
} Workspace;

/* The values of one grade of a sample so far: those of the channels of about one importance. */
typedef struct {
    Workspace *workspace;
    int64_t zeros;     /* values that are in no counter */
    int32_t room;      /* the number of values that each lane may still count */
    int32_t has_moved; /* whether any counts were moved */
    int32_t exponent;  /* log2 of the bin width */
    int32_t largest;   /* the bits of the largest magnitude */
} Grade;

/* Two sums that are taken together. */
typedef struct {
    float first, second;
} Sums;

/* The sums whose second half is still to be added, from the whole down. */
typedef struct {
    int64_t rest[MOST_LEVELS]; /* the size of the second half, 0 where it is begun */
    Sums first_half[MOST_LEVELS];
    int level;
} Halves;

/* What is known of a tensor after some samples. */
typedef struct {
    int64_t *counts;    /* [grades, BINS], or null where nothing is counted */
    int32_t *exponents; /* [grades], log2 of the bin width; meaningless where `largest` is 0 */
    float *largest;     /* [grades], the largest magnitude */
    int64_t grade_count;
    int64_t *sums, *squares; /* exact sums [limbs, channels], or null */
} Totals;

/* Why a sample, or a part of it, was not added. */
enum { NOT_FINITE = 1, SUMS_NOT_FINITE = 2 };

/* A tensor and its results; `sums` may be null. */
typedef struct {
    const float *values;
    int64_t outer, channels, inner;
    const int32_t *grade_of_channel;
    Grade *grades;
    int is_counting, use_avx2;
    float *sums, *squares; /* [outer, channels] */
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
INLINE void fold_bins(int64_t *counts, int32_t doublings)
{
    int shift = doublings < LOG_BINS ? doublings : LOG_BINS;
    for (int bin = 1; bin < BINS; bin++) {
        int64_t count = counts[bin];
        counts[bin] = 0;
        counts[bin >> shift] += count;
    }
}

/* Add the counters of a grade to counts with bins of the same width, and leave them zero. */
INLINE void move_counters(Grade *grade, int64_t *restrict counts)
{
    int last = (int)(from_bits(grade->largest) * power_of_two(-grade->exponent));
    uint16_t *restrict first = grade->workspace->first;
    uint16_t *restrict second = grade->workspace->second;
    for (int bin = 0; bin <= last; bin++)
        counts[bin] += (int64_t)first[bin] + second[bin];
    memset(first, 0, (size_t)(last + 1) * sizeof(uint16_t));
    memset(second, 0, (size_t)(last + 1) * sizeof(uint16_t));
    grade->room = MOST_COUNTED;
}

/* Empty the lanes of a grade. */
INLINE void empty_lanes(Grade *grade)
{
    move_counters(grade, grade->workspace->moved);
    grade->has_moved = 1;
}

/* Widen the bins of a grade until a finite value fits. */
INLINE void extend_bins(Grade *grade, int32_t largest)
{
    int32_t exponent = (largest >> MANTISSA_BITS) - (EXPONENT_BIAS - 1) - LOG_BINS;
    if (exponent <= grade->exponent)
        return;
    if (grade->largest > 0) {
        empty_lanes(grade);
        fold_bins(grade->workspace->moved, exponent - grade->exponent);
    }
    grade->exponent = exponent;
}

#if HAS_AVX2_BUILD
/* Remove the bins 0 where they are many, as after a Relu; return how many bins are left. */
AVX2 static int64_t drop_zeros(uint16_t *bins, int64_t size)
{
    /* The bytes of those of four bins whose bits are set. */
    static const uint8_t bytes_of_bins[16][8] = {
        {0}, {0, 1}, {2, 3}, {0, 1, 2, 3},
        {4, 5}, {0, 1, 4, 5}, {2, 3, 4, 5}, {0, 1, 2, 3, 4, 5},
        {6, 7}, {0, 1, 6, 7}, {2, 3, 6, 7}, {0, 1, 2, 3, 6, 7},
        {4, 5, 6, 7}, {0, 1, 4, 5, 6, 7}, {2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7},
    };
    const __m128i zero = _mm_setzero_si128();
    uint16_t zeros = 0;
    for (int64_t i = 0; i < size; i++)
        zeros = (uint16_t)(zeros + (bins[i] == 0));
    if (zeros * 4 < size)
        return size;
    int64_t left = 0, i = 0;
    for (; i + 8 <= size; i += 8) { /* eight are read before any is written over them */
        __m128i eight = _mm_loadu_si128((const __m128i *)(bins + i));
        __m128i is_zero = _mm_packs_epi16(_mm_cmpeq_epi16(eight, zero), zero);
        unsigned kept = ~(unsigned)_mm_movemask_epi8(is_zero) & 0xff;
        for (int half = 0; half < 2; half++, kept >>= 4, eight = _mm_srli_si128(eight, 8)) {
            __m128i bytes = _mm_loadl_epi64((const __m128i *)bytes_of_bins[kept & 15]);
            _mm_storel_epi64((__m128i *)(bins + left), _mm_shuffle_epi8(eight, bytes));
            left += __builtin_popcount(kept & 15);
        }
    }
    for (; i < size; i++)
        bins[left++] = bins[i];
    return left;
}
#else
static int64_t drop_zeros(uint16_t *bins, int64_t size)
{
    (void)bins;
    return size;
}
#endif

/* Read values ahead; there need not be any at this address. */
INLINE void prefetch(const float *values, int64_t size)
{
#if defined(__GNUC__)
    for (int64_t i = 0; i < size; i += LINE)
        __builtin_prefetch(values + i);
#else
    (void)values, (void)size;
#endif
}

/* Count at most BLOCK values of a grade whose bins they fit into, and read the next ones ahead. */
INLINE void count_block(const float *restrict values, int64_t size, Grade *grade, int use_avx2)
{
    float scale = power_of_two(-grade->exponent);
    uint16_t bins[BLOCK];
    for (int64_t i = 0; i < size; i++)
        bins[i] = (uint16_t)(int32_t)(fabsf(values[i]) * scale);
    int64_t left = use_avx2 ? drop_zeros(bins, size) : size;
    grade->zeros += size - left;
    int32_t most = (int32_t)(left + 1) / 2;
    if (grade->room < most)
        empty_lanes(grade);
    grade->room -= most;
    prefetch(values + size, size);
    uint16_t *restrict first = grade->workspace->first;
    uint16_t *restrict second = grade->workspace->second;
    for (int64_t i = 0; i + 1 < left; i += 2) {
        first[bins[i]]++;
        second[bins[i + 1]]++;
    }
    if (left % 2)
        first[bins[left - 1]]++;
}

/* Return the size of the first leaf of some values, and note the halves after it. */
INLINE int64_t descend(Halves *halves, int64_t size)
{
    while (size > LEAF) {
        int64_t half = size / 2;
        half -= half % LANES;
        halves->rest[halves->level++] = size - half;
        size = half;
    }
    return size;
}

/* Join the sums of a leaf with those before it, and return the size of the next half, or 0 where
the sums are complete. */
INLINE int64_t ascend(Halves *halves, Sums *sums)
{
    while (halves->level > 0) {
        int level = halves->level - 1;
        int64_t rest = halves->rest[level];
        if (rest > 0) {
            halves->first_half[level] = *sums;
            halves->rest[level] = 0;
            return rest;
        }
        sums->first = halves->first_half[level].first + sums->first;
        sums->second = halves->first_half[level].second + sums->second;
        halves->level = level;
    }
    return 0;
}

/* The lanes of a sum; compilers split them where a processor's vectors are shorter. */
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

INLINE float join_lanes(const Lanes *lanes)
{
    float sums[LANES];
    memcpy(sums, lanes, sizeof sums);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Return the sums of at most LEAF values and of others, of their squares where `others` is null. */
INLINE Sums sum_leaf(const float *values, const float *others, int64_t size)
{
    Sums sums = {0.0f, 0.0f};
    int64_t whole = size - size % LANES;
    if (whole > 0) {
        Lanes firsts, seconds, value, other;
        memcpy(&firsts, values, sizeof firsts);
        memcpy(&seconds, others ? others : values, sizeof seconds);
        if (!others)
            seconds *= seconds;
        for (int64_t i = LANES; i < whole; i += LANES) {
            memcpy(&value, values + i, sizeof value);
            firsts += value;
            if (others) {
                memcpy(&other, others + i, sizeof other);
                seconds += other;
            } else {
                seconds += value * value;
            }
        }
        sums.first = join_lanes(&firsts);
        sums.second = join_lanes(&seconds);
    }
    for (int64_t i = whole; i < size; i++) {
        sums.first += values[i];
        sums.second += others ? others[i] : values[i] * values[i];
    }
    return sums;
}

/* Return the sums of one span of values and of their squares. */
INLINE Sums sum_span(const float *values, int64_t size)
{
    Halves halves = {.level = 0};
    Sums sums = {0.0f, 0.0f};
    while (size > 0) {
        int64_t leaf = descend(&halves, size);
        sums = sum_leaf(values, 0, leaf);
        values += leaf;
        size = ascend(&halves, &sums);
    }
    return sums;
}

/* Measure the largest magnitude of values of a tensor, and count them. */
INLINE void measure_block(const Tensor *tensor, const float *values, int64_t size, Grade *grade)
{
    int32_t largest = find_largest(values, size);
    if (largest > grade->largest) {
        if (tensor->is_counting && largest < INFINITE)
            extend_bins(grade, largest);
        grade->largest = largest;
    }
    if (!tensor->is_counting || grade->largest >= INFINITE)
        return;
    if (grade->largest == 0)
        grade->zeros += size;
    else
        count_block(values, size, grade, tensor->use_avx2);
}

INLINE void measure_values(const Tensor *tensor, const float *values, int64_t size, Grade *grade)
{
    for (int64_t i = 0; i < size; i += BLOCK)
        measure_block(tensor, values + i, smaller(BLOCK, size - i), grade);
}

INLINE Grade *find_grade(const Tensor *tensor, int64_t channel)
{
    return tensor->grades + (tensor->grade_of_channel ? tensor->grade_of_channel[channel] : 0);
}

/* Measure a row that is longer than a block, a span at a time. */
INLINE void measure_long_row(const Tensor *tensor, int64_t row, Grade *grade)
{
    const float *values = tensor->values + row * tensor->inner;
    double sum = 0.0, square = 0.0;
    for (int64_t start = 0; start < tensor->inner; start += SPAN) {
        int64_t size = smaller(SPAN, tensor->inner - start);
        measure_values(tensor, values + start, size, grade);
        if (tensor->sums) {
            Sums sums = sum_span(values + start, size);
            sum += (double)sums.first;
            square += (double)sums.second;
        }
    }
    if (tensor->sums) {
        tensor->sums[row] = (float)sum;
        tensor->squares[row] = (float)square;
    }
}

/* Measure rows that fit into a block together. */
INLINE void measure_short_rows(const Tensor *tensor, int64_t first, int64_t count, Grade *grade)
{
    int64_t inner = tensor->inner;
    const float *values = tensor->values + first * inner;
    measure_values(tensor, values, count * inner, grade);
    for (int64_t row = first; tensor->sums && row < first + count; row++, values += inner) {
        Sums sums = sum_span(values, inner);
        tensor->sums[row] = sums.first;
        tensor->squares[row] = sums.second;
    }
}

/* Measure a tensor [outer, channels, inner]. */
INLINE void measure_rows(const Tensor *tensor)
{
    int64_t rows = tensor->outer * tensor->channels;
    int64_t most = BLOCK / tensor->inner;
    int64_t count;
    for (int64_t row = 0; row < rows; row += count) {
        Grade *grade = find_grade(tensor, row % tensor->channels);
        count = 1;
        if (most == 0) {
            measure_long_row(tensor, row, grade);
            continue;
        }
        while (count < most && row + count < rows &&
               find_grade(tensor, (row + count) % tensor->channels) == grade)
            count++;
        measure_short_rows(tensor, row, count, grade);
    }
}

/* Add rows [count, channels] to sums of columns and of their squares, one after the other. */
INLINE void sum_columns(const float *restrict values, int64_t count, int64_t channels,
                        float *restrict sums, float *restrict squares)
{
    for (int64_t row = 0; row < count; row++, values += channels) {
        for (int64_t i = 0; i < channels; i++) {
            sums[i] += values[i];
            squares[i] += values[i] * values[i];
        }
    }
}

/* Measure at most TILE_ROWS rows [count, channels], whose channels differ in grade. */
INLINE void measure_tiles(const Tensor *tensor, const float *values, int64_t count)
{
    float tile[TILE_COLUMNS][TILE_ROWS];
    int64_t channels = tensor->channels;
    for (int64_t first = 0; first < channels; first += TILE_COLUMNS) {
        int64_t width = smaller(TILE_COLUMNS, channels - first);
        for (int64_t i = 0; i < count; i++)
            for (int64_t column = 0; column < width; column++)
                tile[column][i] = values[i * channels + first + column];
        for (int64_t column = 0; column < width; column++)
            measure_block(tensor, tile[column], count, find_grade(tensor, first + column));
    }
}

/* Measure a tensor [outer, inner, channels]. */
INLINE void measure_columns(const Tensor *tensor)
{
    int64_t channels = tensor->channels;
    const float *values = tensor->values;
    if (tensor->sums)
        memset(tensor->sums, 0, (size_t)(2 * tensor->outer * channels) * sizeof(float));
    for (int64_t outer = 0; outer < tensor->outer; outer++) {
        for (int64_t start = 0; start < tensor->inner; start += TILE_ROWS) {
            int64_t count = smaller(TILE_ROWS, tensor->inner - start);
            int64_t size = count * channels;
            if (tensor->sums)
                sum_columns(values, count, channels, tensor->sums + outer * channels,
                            tensor->squares + outer * channels);
            if (tensor->grade_of_channel)
                measure_tiles(tensor, values, count);
            else
                measure_values(tensor, values, size, tensor->grades);
            values += size;
        }
    }
}

INLINE int are_finite(const Grade *grades, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (grades[i].largest >= INFINITE)
            return 0;
    return 1;
}

/* Set the grades of a sample before it is measured. Their bins are those of the totals, which a
sample seldom widens. */
INLINE void begin_grades(const Totals *totals, Workspace *workspaces, Grade *grades)
{
    for (int64_t i = 0; i < totals->grade_count; i++) {
        int32_t exponent = totals->largest[i] > 0.0f ? totals->exponents[i] : LEAST_EXPONENT;
        Grade grade = {.workspace = workspaces + i, .room = MOST_COUNTED, .exponent = exponent};
        grades[i] = grade;
    }
}

/* Add the counts of one grade of a sample to a total with bins of the same width, and leave them
zero. */
INLINE void add_counts(int64_t *restrict total, Grade *grade)
{
    total[0] += grade->zeros;
    move_counters(grade, total);
    if (!grade->has_moved)
        return;
    int64_t *restrict moved = grade->workspace->moved;
    for (int bin = 0; bin < BINS; bin++)
        total[bin] += moved[bin];
    memset(moved, 0, sizeof grade->workspace->moved);
}

/* Add the grades of one sample, all finite, to the totals. */
INLINE void add_grades(const Totals *totals, Grade *grades)
{
    for (int64_t i = 0; i < totals->grade_count; i++) {
        Grade *grade = grades + i;
        int64_t *total = totals->counts ? totals->counts + i * BINS : 0;
        if (grade->largest > 0) {
            int32_t doublings = grade->exponent - totals->exponents[i];
            if (total && totals->largest[i] > 0.0f && doublings > 0)
                fold_bins(total, doublings);
            totals->exponents[i] = grade->exponent;
            totals->largest[i] = fmaxf(totals->largest[i], from_bits(grade->largest));
        }
        if (total)
            add_counts(total, grade);
    }
}

/* Add float32 vectors [count, size] to exact sums [limbs, size], as qdq/ranges/exact_sum.py does;
all values must be finite. */
INLINE void add_exactly(int64_t *limbs, const float *vectors, int64_t count, int64_t size)
{
    const uint64_t low_bits = LIMB_MASK;
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
            int32_t place = exponent - EXPONENT_BIAS - MANTISSA_BITS - EXACT_EXPONENT;
            uint64_t integer = (uint64_t)mantissa << (place % LIMB_BITS);
            int64_t *limb = limbs + (place / LIMB_BITS) * size + i;
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

/* Write the magnitude of an exact sum as digits in units of 2**EXACT_EXPONENT, lowest first; return
whether the sum is negative. `limbs` are those of one value, `stride` apart. */
INLINE int find_digits(const int64_t *limbs, int64_t stride, uint32_t *digits)
{
    int64_t carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        int64_t total = limbs[i * stride] + carry;
        digits[i] = (uint32_t)(total & LIMB_MASK);
        carry = (total - digits[i]) / (LIMB_MASK + 1);
    }
    digits[LIMBS] = (uint32_t)(carry & LIMB_MASK);
    if (carry >= 0)
        return 0;
    uint64_t next = 1; /* two's complement */
    for (int i = 0; i <= LIMBS; i++) {
        next += (uint32_t)~digits[i];
        digits[i] = (uint32_t)next;
        next >>= LIMB_BITS;
    }
    return 1;
}

/* Divide digits by a count; the quotient has SPARE further digits before them. Return the
remainder. */
INLINE uint64_t divide_digits(const uint32_t *digits, uint64_t count, uint32_t *quotient)
{
    uint64_t rest = 0;
    for (int i = SPARE + LIMBS; i >= 0; i--) {
        rest = rest << LIMB_BITS | (i >= SPARE ? digits[i - SPARE] : 0);
        quotient[i] = (uint32_t)(rest / count);
        rest %= count;
    }
    return rest;
}

/* Return digits as a double, rounded to nearest, ties to even; `has_rest` tells whether the exact
value is larger. It is 0 or has more than two digits. */
INLINE double round_digits(const uint32_t *digits, int has_rest)
{
    enum { SHIFT = 11 }; /* 64 bits are rounded to the 53 of a double */
    const uint64_t half = 1u << (SHIFT - 1);
    int top = SPARE + LIMBS;
    while (top >= 0 && digits[top] == 0)
        top--;
    if (top < 0)
        return 0.0;
    int left = 0;
    while (!(digits[top] << left >> (LIMB_BITS - 1)))
        left++;
    uint64_t bits = ((uint64_t)digits[top] << LIMB_BITS | digits[top - 1]) << left;
    uint64_t lower = (uint64_t)digits[top - 2] << left;
    bits |= lower >> LIMB_BITS;
    has_rest |= (uint32_t)lower != 0;
    for (int i = 0; i < top - 2; i++)
        has_rest |= digits[i] != 0;
    uint64_t cut = bits & (2 * half - 1);
    bits >>= SHIFT;
    if (cut > half || (cut == half && (has_rest || bits & 1)))
        bits++;
    int exponent = LIMB_BITS * (top - 1 - SPARE) - left + SHIFT + EXACT_EXPONENT;
    return ldexp((double)bits, exponent);
}

/* Counted values in ascending order, and running sums [count + 1] of their weights and of these
times the values and their squares. */
typedef struct {
    const double *values;
    int64_t count;
    const double *weights, *sums, *squares;
} Counted;

/* Find the values below each integer: `below[i]` are less than i. */
INLINE void count_below(const Counted *counted, int32_t *below)
{
    int32_t position = 0;
    for (int32_t integer = 0; integer <= BINS; integer++) {
        while (position < counted->count && counted->values[position] < (double)integer)
            position++;
        below[integer] = position;
    }
}

/* Return the number of values below a limit; the values are less than BINS. */
INLINE int64_t find_cut(const Counted *counted, const int32_t *below, double limit)
{
    if (limit >= (double)BINS)
        return counted->count;
    int64_t cut = below[(int32_t)limit];
    while (cut < counted->count && counted->values[cut] < limit)
        cut++;
    return cut;
}

/* Return the sum of at most LEAF numbers, as numpy's pairwise summation adds them. */
INLINE double sum_doubles(const double *numbers, int64_t size)
{
    double lanes[LANES];
    double sum = 0.0;
    int64_t whole = size - size % LANES;
    if (whole > 0) {
        memcpy(lanes, numbers, sizeof lanes);
        for (int64_t i = LANES; i < whole; i += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += numbers[i + lane];
        sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
              ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }
    for (int64_t i = whole; i < size; i++)
        sum += numbers[i];
    return sum;
}

/* Return the square error of rounding the values to at most LEAF levels times a scale. */
INLINE double measure_levels(const Counted *counted, const int32_t *below, const double *levels,
                             int64_t level_count, double scale)
{
    double errors[LEAF];
    int64_t start = 0;
    for (int64_t i = 0; i < level_count; i++) {
        double level = levels[i] * scale;
        int64_t end = counted->count;
        if (i + 1 < level_count)
            end = find_cut(counted, below, (level + levels[i + 1] * scale) / 2.0);
        double weight = counted->weights[end] - counted->weights[start];
        double sum = counted->sums[end] - counted->sums[start];
        double square = counted->squares[end] - counted->squares[start];
        double error = square - 2.0 * level * sum + level * level * weight;
        errors[i] = error > 0.0 ? error : 0.0;
        start = end;
    }
    return sum_doubles(errors, level_count);
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

/* Write the errors of at most LEAF weights in steps, times their mean, and the squared errors, times
their variance. */
INLINE void find_errors(const float *restrict weights, int64_t size, float inverse_step,
                        const float *restrict mean, const float *restrict variance, int element,
                        float levels, float *restrict shifts, float *restrict spreads)
{
    for (int64_t i = 0; i < size; i++) {
        float weight = weights[i] * inverse_step;
        float error = clip(round_to_element(weight, element), levels) - weight;
        shifts[i] = mean ? error * mean[i] : error;
        spreads[i] = mean ? error * error * variance[i] : error * error;
    }
}

/* Return the expected square of the output's change by one row, or the square error without means,
in squares of steps. */
INLINE float measure_cost(const Weights *all, const float *weights, float step, const float *mean,
                          const float *variance, int element)
{
    float shifts[LEAF], spreads[LEAF];
    double shift = 0.0, spread = 0.0;
    int64_t i = 0;
    for (int64_t start = 0; start < all->width; start += SPAN) {
        int64_t size = smaller(SPAN, all->width - start);
        Halves halves = {.level = 0};
        Sums sums = {0.0f, 0.0f};
        while (size > 0) {
            int64_t leaf = descend(&halves, size);
            find_errors(weights + i, leaf, 1.0f / step, mean ? mean + i : 0,
                        mean ? variance + i : 0, element, all->levels, shifts, spreads);
            sums = sum_leaf(shifts, spreads, leaf);
            size = ascend(&halves, &sums);
            i += leaf;
        }
        shift += (double)sums.first;
        spread += (double)sums.second;
    }
    float whole_shift = (float)shift;
    return mean ? whole_shift * whole_shift + (float)spread : (float)spread;
}

/* The results of comparisons of lanes: all bits of a lane or none. */
typedef int32_t Bits __attribute__((vector_size(LANES * sizeof(int32_t))));

/* Write `chosen` to lanes where bits are set. Vectors are passed by their addresses, as C passes
those of AVX in another way where it is not enabled. */
INLINE void replace_lanes(const Bits *bits, const Lanes *chosen, Lanes *lanes)
{
    *lanes = (Lanes)((*bits & (Bits)*chosen) | (~*bits & (Bits)*lanes));
}

/* Add the errors of one weight to sums, for a candidate in each lane. */
INLINE void add_errors(float weight, const Lanes *inverse_steps, const float *mean,
                       const float *variance, float levels, Lanes *shifts, Lanes *spreads)
{
    const Lanes zeros = {0.0f};
    Lanes highest = zeros + levels, lowest = zeros - levels;
    Lanes scaled = weight * *inverse_steps;
    Lanes rounded = (scaled + ROUNDER) - ROUNDER;
    Bits is_above = rounded > highest, is_below = rounded < lowest;
    replace_lanes(&is_above, &highest, &rounded);
    replace_lanes(&is_below, &lowest, &rounded);
    Lanes error = rounded - scaled;
    *shifts += mean ? error * *mean : error;
    *spreads += mean ? error * error * *variance : error * error;
}

/* Join the sums of weights that a row's own lanes would hold. */
INLINE void join_sums(const Lanes *sums, Lanes *total)
{
    *total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
             ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Write the cost of a candidate in each lane for a row of at most LEAF weights in INT8, as
`measure_cost` has it: there may be fewer weights than lanes. */
INLINE void measure_group(const Weights *all, const float *weights, const float *candidate_steps,
                          const float *mean, const float *variance, float *costs)
{
    Lanes steps, cost, shift, spread;
    memcpy(&steps, candidate_steps, sizeof steps);
    Lanes shifts[LANES] = {{0.0f}}, spreads[LANES] = {{0.0f}};
    Lanes inverse_steps = 1.0f / steps;
    int64_t whole = all->width - all->width % LANES;
    for (int64_t start = 0; start < whole; start += LANES)
        for (int64_t j = 0; j < LANES; j++)
            add_errors(weights[start + j], &inverse_steps, mean ? mean + start + j : 0,
                       mean ? variance + start + j : 0, all->levels, shifts + j, spreads + j);
    join_sums(shifts, &shift);
    join_sums(spreads, &spread);
    for (int64_t j = whole; j < all->width; j++)
        add_errors(weights[j], &inverse_steps, mean ? mean + j : 0, mean ? variance + j : 0,
                   all->levels, &shift, &spread);
    cost = mean ? shift * shift + spread : spread;
    memcpy(costs, &cost, sizeof cost);
}

INLINE float find_step(const Weights *all, float largest, float candidate)
{
    float step = largest * (candidate / all->levels);
    return step > FLT_MIN ? step : FLT_MIN;
}

/* Search for one row as `search_row` does, for a row of at most LEAF weights in INT8. */
INLINE void search_narrow_row(const Weights *all, int64_t row, const float *mean,
                              const float *variance, float largest)
{
    const float *weights = all->rows + row * all->width;
    const float *candidates = all->candidates + (all->candidate_stride > 1 ? row : 0);
    float least = INFINITY;
    for (int64_t first = 0; first < all->candidate_count; first += LANES) {
        float tried[LANES], steps[LANES], costs[LANES];
        int count = (int)smaller(LANES, all->candidate_count - first);
        for (int i = 0; i < LANES; i++) {
            int64_t position = first + (i < count ? i : 0);
            tried[i] = candidates[position * all->candidate_stride];
            steps[i] = find_step(all, largest, tried[i]);
        }
        measure_group(all, weights, steps, mean, variance, costs);
        for (int i = 0; i < count; i++) {
            float cost = costs[i] * (tried[i] * tried[i]); /* of the square of the largest weight */
            if (cost < least) {
                least = cost;
                all->amax[row] = largest * tried[i];
            }
        }
    }
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
    if (element == ELEMENT_INT8 && all->width <= LEAF) {
        search_narrow_row(all, row, mean, variance, largest);
        return;
    }
    for (int64_t i = 0; i < all->candidate_count; i++) {
        float candidate = candidates[i * all->candidate_stride];
        float step = find_step(all, largest, candidate);
        float cost = measure_cost(all, weights, step, mean, variance, element);
        cost *= candidate * candidate; /* relative to the square of the largest weight */
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
static void add_grades_portable(const Totals *totals, Grade *grades)
{
    add_grades(totals, grades);
}
static void search_int8_portable(const Weights *all) { search_rows(all, ELEMENT_INT8); }
static void search_e4m3_portable(const Weights *all) { search_rows(all, ELEMENT_E4M3); }

#if HAS_AVX2_BUILD
AVX2 static void measure_rows_avx2(const Tensor *tensor) { measure_rows(tensor); }
AVX2 static void measure_columns_avx2(const Tensor *tensor) { measure_columns(tensor); }
AVX2 static void add_grades_avx2(const Totals *totals, Grade *grades)
{
    add_grades(totals, grades);
}
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

/* The bytes that `qdq_add_tensor` counts a grade in. */
EXPORT int64_t qdq_size_of_workspace(void) { return sizeof(Workspace); }

/* Add one sample of a tensor to its totals; return what prevented it, or a part of it.

`values` is [outer, channels, inner], or [outer, inner, channels] where `is_transposed`.
`grade_of_channel` is null where all channels are of the first grade. `workspaces` [grades] are
zero, before and after. `sums` [2, outer, channels] is to calculate in, and null where nothing is
summed. */
EXPORT int32_t qdq_add_tensor(const Totals *totals, const float *values, int64_t outer,
                              int64_t channels, int64_t inner, int32_t is_transposed,
                              const int32_t *grade_of_channel, Workspace *workspaces,
                              float *sums, int32_t use_avx2)
{
    enum { MOST_GRADES = 64 };
    Grade grades[MOST_GRADES];
    int64_t grade_count = totals->grade_count;
    if (grade_count > MOST_GRADES)
        return NOT_FINITE;
    begin_grades(totals, workspaces, grades);
    Tensor tensor = {values, outer, channels, inner, grade_of_channel, grades,
                     totals->counts != 0, use_avx2, sums, sums ? sums + outer * channels : 0};
    if (is_transposed)
        CHOOSE(use_avx2, measure_columns)(&tensor);
    else
        CHOOSE(use_avx2, measure_rows)(&tensor);
    if (!are_finite(grades, grade_count)) {
        memset(workspaces, 0, (size_t)grade_count * sizeof *workspaces);
        return NOT_FINITE;
    }
    CHOOSE(use_avx2, add_grades)(totals, grades);
    if (!sums)
        return 0;
    if (find_largest(sums, 2 * outer * channels) >= INFINITE)
        return SUMS_NOT_FINITE;
    add_exactly(totals->sums, tensor.sums, outer, channels);
    add_exactly(totals->squares, tensor.squares, outer, channels);
    return 0;
}

/* Add float32 vectors [count, size] to exact sums [limbs, size]; all values must be finite. */
EXPORT void qdq_add_exactly(int64_t *limbs, const float *vectors, int64_t count, int64_t size)
{
    add_exactly(limbs, vectors, count, size);
}

/* Divide exact sums [limbs, size] by a count of at most 32 bits; each quotient is rounded once. */
EXPORT void qdq_divide_exactly(const int64_t *limbs, int64_t size, int64_t count, double *quotients)
{
    for (int64_t i = 0; i < size; i++) {
        uint32_t digits[LIMBS + 1], quotient[SPARE + LIMBS + 1];
        int is_negative = find_digits(limbs + i, size, digits);
        uint64_t rest = divide_digits(digits, (uint64_t)count, quotient);
        double magnitude = round_digits(quotient, rest != 0);
        quotients[i] = is_negative ? -magnitude : magnitude;
    }
}

/* Return the position of the candidate amax with the least square error of rounding counted values
to levels, the first of several.

`values` [count] are ascending and less than BINS; `moments` [3, count + 1] are running sums of their
weights, and of these times the values and their squares. There are at most LEAF levels. */
EXPORT int64_t qdq_search_levels(const double *values, int64_t count, const double *moments,
                                 const double *levels, int64_t level_count,
                                 const int64_t *candidates, int64_t candidate_count)
{
    Counted counted = {values, count, moments, moments + (count + 1), moments + 2 * (count + 1)};
    int32_t below[BINS + 1];
    int64_t best = 0;
    double least = INFINITY;
    count_below(&counted, below);
    for (int64_t i = 0; i < candidate_count; i++) {
        double scale = (double)candidates[i] / levels[level_count - 1];
        double error = measure_levels(&counted, below, levels, level_count, scale);
        if (error < least) {
            least = error;
            best = i;
        }
    }
    return best;
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
