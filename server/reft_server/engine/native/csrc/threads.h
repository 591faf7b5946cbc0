/* A pool of threads that runs a program: phases in order, each a number of independent tasks.

   Tasks are taken one by one from a counter, so a thread that loses its core for a while delays one task, not its
   share of a phase. Whoever finishes a phase's last task opens the next one. Which thread runs a task never changes
   its result. A thread without work spins for some microseconds, then sleeps; between programs every worker sleeps. */

#ifndef REFT_THREADS_H
#define REFT_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "vectors.h"

enum { SPINS_BEFORE_SLEEP = 2000, MAX_TASKS = (1 << 20) - 1 };

struct phase;
typedef void (*task_function)(void *context, const struct phase *phase, uint32_t task, uint32_t thread);

struct phase {
    task_function run;
    uint32_t num_tasks; /* 1 to MAX_TASKS */
    uint32_t layer;
    const void *argument;
    uint32_t flags;
};

/* The ticket holds three numbers, so that one atomic addition takes a task and says of which phase: the count of
   phases opened so far (24 bits), the tasks of this phase (20 bits) and the next task to take (20 bits). */
struct pool {
    _Atomic uint64_t ticket;
    _Atomic uint32_t num_done;
    _Atomic uint32_t num_sleepers;
    const struct phase *program;
    void *context;
    uint32_t first_sequence; /* the count at the program's first phase */
    uint32_t program_length;
    uint32_t num_threads; /* the caller of pool_run among them */
    _Atomic bool is_stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *workers;
};

struct worker {
    struct pool *pool;
    uint32_t thread;
};

INLINE uint32_t ticket_sequence(uint64_t ticket) { return (uint32_t)(ticket >> 40); }
INLINE uint32_t ticket_num_tasks(uint64_t ticket) { return (uint32_t)(ticket >> 20) & MAX_TASKS; }
INLINE uint32_t ticket_task(uint64_t ticket) { return (uint32_t)ticket & MAX_TASKS; }

INLINE void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pool_open(struct pool *pool, uint32_t sequence, uint32_t num_tasks) {
    sequence &= 0xFFFFFF;
    atomic_store(&pool->ticket, (uint64_t)sequence << 40 | (uint64_t)num_tasks << 20);
    if (atomic_load(&pool->num_sleepers)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Wait until the phase is another one than `sequence`. */
static void pool_wait(struct pool *pool, uint32_t sequence) {
    for (int spin = 0; spin < SPINS_BEFORE_SLEEP; spin++) {
        if (ticket_sequence(atomic_load(&pool->ticket)) != sequence) return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->num_sleepers, 1);
    while (ticket_sequence(atomic_load(&pool->ticket)) == sequence && !pool->is_stopping)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->num_sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void pool_finish_task(struct pool *pool, uint64_t ticket) {
    if (atomic_fetch_add(&pool->num_done, 1) + 1 < ticket_num_tasks(ticket)) return;
    uint32_t sequence = ticket_sequence(ticket);
    uint32_t next = ((sequence - pool->first_sequence) & 0xFFFFFF) + 1;
    atomic_store(&pool->num_done, 0);
    pool_open(pool, sequence + 1, next < pool->program_length ? pool->program[next].num_tasks : 0);
}

/* Take one task and run it; false if the open phase, whose count goes to `sequence`, has none left. */
static bool pool_run_task(struct pool *pool, uint32_t thread, uint32_t *sequence) {
    uint64_t ticket = atomic_fetch_add(&pool->ticket, 1);
    *sequence = ticket_sequence(ticket);
    if (ticket_task(ticket) >= ticket_num_tasks(ticket)) return false;
    const struct phase *phase = &pool->program[(*sequence - pool->first_sequence) & 0xFFFFFF];
    phase->run(pool->context, phase, ticket_task(ticket), thread);
    pool_finish_task(pool, ticket);
    return true;
}

static void *pool_work(void *argument) {
    struct worker worker = *(struct worker *)argument;
    free(argument);
    uint32_t sequence;
    while (!worker.pool->is_stopping)
        if (!pool_run_task(worker.pool, worker.thread, &sequence)) pool_wait(worker.pool, sequence);
    return NULL;
}

/* Run a program; the caller is thread 0. */
static void pool_run(struct pool *pool, const struct phase *program, uint32_t length, void *context) {
    if (!length) return;
    pool->program = program;
    pool->program_length = length;
    pool->context = context;
    pool->first_sequence = (ticket_sequence(atomic_load(&pool->ticket)) + 1) & 0xFFFFFF;
    uint32_t end = (pool->first_sequence + length) & 0xFFFFFF, sequence;
    pool_open(pool, pool->first_sequence, program[0].num_tasks);
    while (ticket_sequence(atomic_load(&pool->ticket)) != end)
        if (!pool_run_task(pool, 0, &sequence) && sequence != end) pool_wait(pool, sequence);
}

static void pool_stop(struct pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->is_stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i + 1 < pool->num_threads; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
}

/* Start `num_threads - 1` workers; where the system refuses one, go on with fewer. */
static bool pool_start(struct pool *pool, uint32_t num_threads) {
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->num_threads = 1;
    pool->workers = calloc(num_threads, sizeof *pool->workers);
    if (!pool->workers) return false;
    while (pool->num_threads < num_threads) {
        struct worker *worker = malloc(sizeof *worker);
        if (!worker) break;
        *worker = (struct worker){pool, pool->num_threads};
        if (pthread_create(&pool->workers[pool->num_threads - 1], NULL, pool_work, worker)) {
            free(worker);
            break;
        }
        pool->num_threads++;
    }
    return true;
}

#endif
