/* What models in C are made of. The exporter (c.py) takes the functions that a model needs, with
   those that these need, and puts the model's name in the place of "fvq". C99 and libm alone.

   A product is added to a sum by a statement of its own where the bits have to be those of the
   runtime: compilers may fuse both within one expression. */

/* ---- weights, decoded row by row ------------------------------------------------------------ */

/* A float16. */
static float fvq_half(uint16_t bits)
{
    const int exponent = (bits >> 10) & 31;
    const float digits = (float)(bits & 1023);
    float value = ldexpf(digits, -24);
    if (exponent == 31) {
        value = digits > 0 ? NAN : INFINITY;
    } else if (exponent > 0) {
        value = ldexpf(digits + 1024, exponent - 25);
    }
    return (bits & 0x8000) ? -value : value;
}

/* Code number i of those that lie without gaps, each lowest bit first: of 1 to 16 bits. */
static uint32_t fvq_code(const uint8_t *codes, uint32_t i, uint32_t bits)
{
    const uint32_t shift = (i * bits) & 7;
    uint32_t word = 0;
    codes += (i * bits) >> 3;
    for (uint32_t read = 0; read < shift + bits; read += 8) {
        word |= (uint32_t)*codes++ << read;
    }
    return (word >> shift) & (((uint32_t)1 << bits) - 1);
}

/* Values kept as float16. */
static void fvq_row_of_halves(float *row, const uint16_t *values, uint32_t width)
{
    for (uint32_t k = 0; k < width; k++) {
        row[k] = fvq_half(values[k]);
    }
}

/* (q - zero) * scale, q in bytes. */
static void fvq_row_of_bytes(float *row, const int8_t *q, uint32_t width, int zero, float scale)
{
    for (uint32_t k = 0; k < width; k++) {
        row[k] = (float)(q[k] - zero) * scale;
    }
}

/* Whole numbers around zero: row i of codes, less the code that stands for 0. */
static void fvq_row_of_numbers(float *row, uint32_t i, uint32_t width, const uint8_t *codes,
                               uint32_t bits)
{
    const float zero = (float)((uint32_t)1 << (bits - 1));
    for (uint32_t k = 0; k < width; k++) {
        row[k] = (float)fvq_code(codes, i * width + k, bits) - zero;
    }
}

/* The same where each group has a zero point of its own. */
static void fvq_row_with_points(float *row, uint32_t i, uint32_t width, const uint8_t *codes,
                                uint32_t bits, const uint8_t *points, uint32_t group)
{
    const uint32_t first = i * ((width + group - 1) / group);
    for (uint32_t k = 0; k < width; k++) {
        const float zero = (float)fvq_code(points, first + k / group, bits);
        row[k] = (float)fvq_code(codes, i * width + k, bits) - zero;
    }
}

/* Codewords: one codebook, or (apart > 0) one for each group, so many codewords apart. */
static void fvq_row_of_codewords(float *row, uint32_t i, uint32_t width, const uint8_t *codes,
                                 uint32_t bits, const float *words, uint32_t apart,
                                 uint32_t group)
{
    for (uint32_t k = 0; k < width; k++) {
        row[k] = words[apart * (k / group) + fvq_code(codes, i * width + k, bits)];
    }
}

/* Codewords in bytes. */
static void fvq_row_of_levels(float *row, uint32_t i, uint32_t width, const uint8_t *codes,
                              uint32_t bits, const int8_t *words)
{
    for (uint32_t k = 0; k < width; k++) {
        row[k] = (float)words[fvq_code(codes, i * width + k, bits)];
    }
}

/* Blocks of d values, each the sum of a codeword of every stage; words: stages x n x d. */
static void fvq_row_of_products(float *row, uint32_t i, uint32_t width, const uint8_t *codes,
                                uint32_t bits, const uint16_t *words, uint32_t stages,
                                uint32_t n, uint32_t d)
{
    const uint32_t first = i * ((width + d - 1) / d) * stages;
    for (uint32_t k = 0; k < width; k++) {
        row[k] = 0;
        for (uint32_t s = 0; s < stages; s++) {
            const uint32_t code = fvq_code(codes, first + k / d * stages + s, bits);
            row[k] += fvq_half(words[(s * n + code) * d + k % d]);
        }
    }
}

/* The same with codewords of float. */
static void fvq_row_of_float_products(float *row, uint32_t i, uint32_t width,
                                      const uint8_t *codes, uint32_t bits, const float *words,
                                      uint32_t stages, uint32_t n, uint32_t d)
{
    const uint32_t first = i * ((width + d - 1) / d) * stages;
    for (uint32_t k = 0; k < width; k++) {
        row[k] = 0;
        for (uint32_t s = 0; s < stages; s++) {
            const uint32_t code = fvq_code(codes, first + k / d * stages + s, bits);
            row[k] += words[(s * n + code) * d + k % d];
        }
    }
}

/* Groups of a row times their scales * 2^exponent. */
static void fvq_scale(float *row, uint32_t width, const uint16_t *scales, uint32_t group,
                      int exponent)
{
    for (uint32_t first = 0; first < width; first += group) {
        const float scale = ldexpf(fvq_half(*scales++), exponent);
        for (uint32_t k = first; k < width && k < first + group; k++) {
            row[k] *= scale;
        }
    }
}

/* The same with scales of float. */
static void fvq_scale_by_floats(float *row, uint32_t width, const float *scales, uint32_t group,
                                int exponent)
{
    for (uint32_t k = 0; k < width; k++) {
        row[k] *= ldexpf(scales[k / group], exponent);
    }
}

/* Values of row i that are kept beside its codes: those from starts[i] up to starts[i + 1]. */
static void fvq_put(float *row, uint32_t i, const uint32_t *starts, const uint16_t *columns,
                    const float *values)
{
    for (uint32_t j = starts[i]; j < starts[i + 1]; j++) {
        row[columns[j]] = values[j];
    }
}

/* ---- products ------------------------------------------------------------------------------- */

static float fvq_dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        sum += a[k] * b[k];
    }
    return sum;
}

/* Groups of x as whole numbers within 127, and their steps: NaN where one is not finite. */
static void fvq_round_groups(const float *x, uint32_t width, uint32_t group, int8_t *q,
                             float *steps)
{
    for (uint32_t first = 0; first < width; first += group) {
        const uint32_t last = width - first < group ? width : first + group;
        float most = 0, step;
        int finite = 1;
        for (uint32_t k = first; k < last; k++) {
            finite = finite && isfinite(x[k]);
            most = fmaxf(most, fabsf(x[k]));
        }
        step = fmaxf(most / 127, 0x1p-126f);
        *steps++ = finite ? step : NAN;
        for (uint32_t k = first; k < last; k++) {
            q[k] = finite ? (int8_t)rintf(fminf(fmaxf(x[k] * (1 / step), -127), 127)) : 0;
        }
    }
}

/* Groups of whole levels times whole numbers, each sum times its step and its scale. */
static float fvq_dot_of_groups(const float *levels, const int8_t *q, const float *steps,
                               const uint16_t *scales, float unit, uint32_t width,
                               uint32_t group)
{
    float total = 0;
    for (uint32_t first = 0; first < width; first += group) {
        int32_t sum = 0;
        float part;
        for (uint32_t k = first; k < width && k < first + group; k++) {
            sum += (int32_t)q[k] * (int32_t)levels[k];
        }
        part = fvq_half(*scales++) * unit;
        part *= (float)sum;
        part *= *steps++;
        total += part;
    }
    return total;
}

/* x as bytes: its range, with 0, in 255 steps. Returns the step, and in zero what stands for 0. */
static float fvq_round_row(const float *x, uint32_t n, int8_t *q, int32_t *zero)
{
    float low = 0, high = 0, step;
    int finite = 1;
    for (uint32_t k = 0; k < n; k++) {
        finite = finite && isfinite(x[k]);
        low = fminf(low, x[k]);
        high = fmaxf(high, x[k]);
    }
    if (!finite) {
        low = high = 0;
    }
    step = fmaxf(high / 255 - low / 255, 0x1p-126f);
    *zero = -128 - (int32_t)rintf(low * (1 / step));
    for (uint32_t k = 0; k < n; k++) {
        const float value = finite ? rintf(x[k] * (1 / step)) + (float)*zero : (float)*zero;
        q[k] = (int8_t)fminf(fmaxf(value, -128), 127);
    }
    return finite ? step : NAN;
}

/* Sum of (x - zero) * w. */
static int32_t fvq_dot_of_bytes(const int8_t *x, const int8_t *w, uint32_t n, int32_t zero)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        sum += ((int32_t)x[k] - zero) * w[k];
    }
    return sum;
}

/* A number rounded, of two to the even one, moved by the zero point and kept within limits. */
static float fvq_round(float real, float zero, float low, float high)
{
    return fminf(fmaxf(rintf(real) + zero, low), high);
}

/* ---- trees ---------------------------------------------------------------------------------- */

/* Whether a value is a member of a set of the numbers 0 to 255. */
static int fvq_is_member(double value, const uint8_t *set)
{
    const int c = value >= 0 && value < 256 ? (int)value : -1;
    return c == value && ((set[c / 8] >> (c % 8)) & 1);
}
