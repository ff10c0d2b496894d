/* What the CPU and the operating system support, asked without running any of it.
 *
 * x86-64: CPUID (Intel SDM volume 2A, AMD APM volume 3 appendix E), and XCR0, where the operating
 * system says which vector registers it saves when it switches tasks (SDM volume 1, section 13.3).
 * A compiler's __builtin_cpu_supports knows only the features that its release knew.
 * Arm: the auxiliary vector, in which Linux hands each process the kernel's own list.
 *
 * The names are those of /proc/cpuinfo, and of Level.features in _levels.py.
 */
#ifndef FASTVQ_CPU_H
#define FASTVQ_CPU_H

#if defined(__x86_64__)

#include <cpuid.h>

#define FASTVQ_MACHINE "x86_64"

enum { EAX, EBX, ECX, EDX };
/* The XCR0 bits that a feature needs: none; SSE and AVX state; those and the three of AVX-512. */
enum { GENERAL = 0x00, YMM = 0x06, ZMM = 0xe6 };

static const struct {
    const char *name;
    unsigned leaf, reg, bit, state;
} cpu_features[] = {
    {"pni", 1, ECX, 0, GENERAL},
    {"ssse3", 1, ECX, 9, GENERAL},
    {"fma", 1, ECX, 12, YMM},
    {"cx16", 1, ECX, 13, GENERAL},
    {"sse4_1", 1, ECX, 19, GENERAL},
    {"sse4_2", 1, ECX, 20, GENERAL},
    {"movbe", 1, ECX, 22, GENERAL},
    {"popcnt", 1, ECX, 23, GENERAL},
    {"xsave", 1, ECX, 26, GENERAL},
    {"avx", 1, ECX, 28, YMM},
    {"f16c", 1, ECX, 29, YMM},
    {"bmi1", 7, EBX, 3, GENERAL},
    {"avx2", 7, EBX, 5, YMM},
    {"bmi2", 7, EBX, 8, GENERAL},
    {"avx512f", 7, EBX, 16, ZMM},
    {"avx512dq", 7, EBX, 17, ZMM},
    {"avx512cd", 7, EBX, 28, ZMM},
    {"avx512bw", 7, EBX, 30, ZMM},
    {"avx512vl", 7, EBX, 31, ZMM},
    {"avx512_vnni", 7, ECX, 11, ZMM},
    {"lahf_lm", 0x80000001, ECX, 0, GENERAL},
    {"abm", 0x80000001, ECX, 5, GENERAL},
};

static unsigned saved_state(void) {
    enum { OSXSAVE = 1u << 27 }; /* leaf 1, ECX: xgetbv may be executed */
    unsigned reg[4], low, high;
    if (!__get_cpuid(1, reg, reg + 1, reg + 2, reg + 3) || !(reg[ECX] & OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int cpu_has(unsigned i) {
    const unsigned state = cpu_features[i].state;
    unsigned reg[4];
    return __get_cpuid_count(cpu_features[i].leaf, 0, reg, reg + 1, reg + 2, reg + 3)
        && (reg[cpu_features[i].reg] >> cpu_features[i].bit & 1)
        && (saved_state() & state) == state;
}

#elif defined(__aarch64__)

#define FASTVQ_MACHINE "aarch64"

/* Bits of AT_HWCAP, fixed by Linux (arch/arm64/include/uapi/asm/hwcap.h). */
static const struct {
    const char *name;
    unsigned bit;
} cpu_features[] = {
    {"crc32", 7},
    {"atomics", 8},
    {"asimdrdm", 12},
    {"asimddp", 20},
};

#if defined(__APPLE__)
/* Every Mac with an Arm processor has all of them: the first, M1, is ARMv8.4-A. */
static int cpu_has(unsigned i) { (void)i; return 1; }
#else
#include <sys/auxv.h>
static int cpu_has(unsigned i) { return getauxval(AT_HWCAP) >> cpu_features[i].bit & 1; }
#endif

#else
#error "fastvq has no kernels for this machine: see fastvq/_kernels/_levels.py"
#endif

static const char *cpu_machine(void) { return FASTVQ_MACHINE; }
static unsigned cpu_n_features(void) { return sizeof cpu_features / sizeof *cpu_features; }
static const char *cpu_feature_name(unsigned i) { return cpu_features[i].name; }

#endif
