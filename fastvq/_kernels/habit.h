/* Whether a call of a program runs on its team of threads or on one: learnt from its own times.
 *
 * A team that still spins from the call before is there in 2 us. One that sleeps takes 50 to 100,
 * and where another process holds its CPU, some milliseconds. No amount of work tells which it will
 * be, so a call goes on as it is used to and now and then tries the other way twice: once for the
 * team to wake, once for the time. It changes its ways if waking is repaid within HABIT_REPAID
 * calls. What a trial cost beyond the usual has to be earned again HABIT_CARE times over before the
 * next. A call that is known to take long on one thread keeps its team.
 *
 * Bits do not depend on it: kernels give the same at any number of threads.
 */
#ifndef FASTVQ_HABIT_H
#define FASTVQ_HABIT_H

/* Calls from one trial to the next: at first, and at most. */
enum { HABIT_SOON = 8, HABIT_SELDOM = 1 << 16, HABIT_CARE = 50, HABIT_REPAID = 64 };

/* Seconds on one thread beyond which a team pays; and on a team, beyond which that is plain. */
#define HABIT_SURE 1e-4
#define HABIT_PLAIN 2e-3

/* Part of the usual time by which it may grow before the other way is tried anew. */
#define HABIT_GROWTH 1.5

typedef struct {
    int threads;    /* of the team; 1: nothing to learn */
    int alone;      /* what is usual now */
    int trying;     /* calls left of a trial */
    long calls;     /* usual ones since the last trial */
    long left;      /* and until the next one */
    long rest;      /* usual calls between two of them */
    double usual;   /* seconds, mean of the calls since the last trial, with all their waiting */
    double settled; /* the usual at the last trial */
    double cost;    /* seconds of this trial */
    double one, team; /* seconds of the best run of each */
} Habit;

static inline void habit_begin(Habit *habit, int threads)
{
    const Habit fresh = {.threads = threads, .left = 1, .rest = HABIT_SOON, .team = HABIT_PLAIN};
    *habit = fresh;
}

/* Threads for the next call. */
static inline int habit_threads(const Habit *habit)
{
    return habit->alone != (habit->trying > 0) ? 1 : habit->threads;
}

static inline void habit_end_trial(Habit *habit, double seconds)
{
    const double loss = habit->cost / habit->usual - 2, waking = habit->cost - 2 * seconds;
    double rest = 2.0 * habit->rest;
    /* A first call is a cold one: a long call must not be judged by it, and left alone for ever. */
    const int keeps_team = !habit->alone && habit->one >= HABIT_SURE;
    const int repaid = HABIT_REPAID * (habit->usual - seconds) > waking;
    if (seconds < habit->usual && repaid && !keeps_team) {
        habit->alone = !habit->alone;
        habit->usual = seconds;
        rest = HABIT_SOON;
    }
    rest = rest > HABIT_CARE * loss ? rest : HABIT_CARE * loss;
    habit->rest = rest < HABIT_SELDOM ? (long)rest : HABIT_SELDOM;
    habit->left = habit->rest;
    habit->settled = habit->usual;
    habit->calls = 0;
}

/* Take note of what that call took. */
static inline void habit_note(Habit *habit, double seconds)
{
    double *best = habit_threads(habit) > 1 ? &habit->team : &habit->one;
    if (!*best || seconds < *best)
        *best = seconds;
    if (habit->trying) {
        habit->cost += seconds;
        if (--habit->trying == 0)
            habit_end_trial(habit, seconds);
        return;
    }
    habit->calls++;
    habit->usual += (seconds - habit->usual) / habit->calls;
    if (!habit->settled)
        habit->settled = seconds;
    if (habit->usual > HABIT_GROWTH * habit->settled && habit->left > HABIT_SOON)
        habit->left = HABIT_SOON;
    if (--habit->left <= 0 && habit->team < HABIT_PLAIN && habit->one < HABIT_SURE) {
        habit->trying = 2;
        habit->cost = 0;
    }
}

#endif
