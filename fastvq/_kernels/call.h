/* One call of a kernel by the runtime: everything it needs, in one record.
 *
 * A kernel of the runtime is a C function `int kernel(const Call *call)` that a module hands out as
 * a capsule in its table `entries`. It is called without the GIL, allocates nothing, and returns 0,
 * or a number that its lowering (runtime/lowering/) turns into an error. What operands, sizes and
 * values mean stands beside each kernel, in this order.
 */
#ifndef FASTVQ_CALL_H
#define FASTVQ_CALL_H

#include <stdint.h>

enum { CALL_OPERANDS = 16, CALL_SIZES = 48, CALL_VALUES = 8 };

typedef struct {
    void *operand[CALL_OPERANDS]; /* addresses; NULL for one that is left out */
    int64_t size[CALL_SIZES];
    double value[CALL_VALUES];
    int threads;
} Call;

typedef int (*Kernel)(const Call *);

#define KERNEL_CAPSULE "fastvq.kernel"

#endif
