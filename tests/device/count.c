/* A plugin for qemu's user-mode emulation: how often each translated block of guest code was executed.
 *
 *     qemu-aarch64 -plugin count.so,out=FILE …
 *
 * The guest says what to count by closing a descriptor that cannot be open: close(-77001) begins an interval
 * and close(-77002) ends it. At each end the blocks executed since the beginning are appended to FILE: a
 * uint64 with their number, then so many `struct block`. Which object a block belongs to is known from the
 * guest's /proc/self/maps. With `at=ADDRESS` (hex) every execution of the block at that guest address is an
 * end and a new beginning too, but only the totals are written then, to FILE.at: two uint64, instructions and
 * dot products.
 *
 * Counting is inline (no call a block) and not atomic: for one thread. The few declarations of qemu-plugin.h
 * that are needed stand here, since Debian packages no header: API version 1, of qemu 6 to 8.1. Others refuse
 * to load the plugin and name the versions that they take. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { CB_NO_REGS = 0, INLINE_ADD_U64 = 0 };

typedef void (*translated_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*syscall_t)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t);
typedef void (*executed_t)(unsigned, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_t);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed_t, int flags, void *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { CLOSE = 57, BEGIN = 77001, END = 77002, CHUNK = 4096 };

struct block {
    uint64_t address;      /* of the guest */
    uint64_t count;        /* executions */
    uint32_t instructions; /* of one execution, and so the rest: */
    uint32_t dots;         /* SDOT and UDOT */
    uint32_t fmlas;        /* FMLA of vectors */
    uint32_t load_bytes;
};

/* Blocks keep their place, since translated code adds to their counts. */
struct chunk {
    struct chunk *next;
    size_t used;
    struct block blocks[CHUNK];
};

static struct chunk *chunks;
static FILE *out, *at_out;
static uint64_t at, executed, dots;
static bool counting;

static bool is_dot(uint32_t word) {
    return (word & 0x9FE0FC00) == 0x0E809400    /* SDOT, UDOT: vectors */
           || (word & 0x9FC0F400) == 0x0F80E000; /* by element */
}

static bool is_fmla(uint32_t word) {
    return (word & 0xBFA0FC00) == 0x0E20CC00    /* FMLA: vectors */
           || (word & 0xBF80F400) == 0x0F801000; /* by element */
}

/* Bytes that the instruction reads from memory. Atomic and single-structure loads are left out. */
static uint32_t loaded(uint32_t word) {
    uint32_t size = word >> 30, opc = word >> 22 & 3;
    bool vector = word >> 26 & 1;
    switch (word >> 27 & 7) {
    case 7: /* one register */
        if ((word >> 21 & 1) && !(word >> 24 & 1) && !(word >> 10 & 3))
            return 0; /* atomic */
        if (vector)
            return opc == 3 ? 16 : opc == 1 ? 1u << size : 0;
        return opc == 0 || (size == 3 && opc == 2) ? 0 : 1u << size;
    case 5: /* a pair */
        if (word >> 25 & 1 || !(word >> 22 & 1))
            return 0;
        return vector ? 8u << size : size == 2 ? 16 : 8;
    case 3: /* a literal */
        if (word >> 24 & 3)
            return 0;
        return vector ? 4u << size : size == 1 ? 8 : size == 3 ? 0 : 4;
    case 1: /* several structures: LD1 to LD4 */
        if ((word & 0xBF400000) != 0x0C400000)
            return 0;
        switch (word >> 12 & 15) {
        case 0: case 2: return (word >> 30 & 1 ? 16 : 8) * 4;
        case 4: case 6: return (word >> 30 & 1 ? 16 : 8) * 3;
        case 8: case 10: return (word >> 30 & 1 ? 16 : 8) * 2;
        case 7: return word >> 30 & 1 ? 16 : 8;
        }
    }
    return 0;
}

static struct block *new_block(void) {
    if (!chunks || chunks->used == CHUNK) {
        struct chunk *chunk = calloc(1, sizeof *chunk);
        if (!chunk)
            abort();
        chunk->next = chunks;
        chunks = chunk;
    }
    return &chunks->blocks[chunks->used++];
}

static void boundary(unsigned cpu, void *unused) {
    (void)cpu, (void)unused;
    if (counting) {
        uint64_t totals[2] = {executed, dots};
        fwrite(totals, sizeof totals, 1, at_out);
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    struct block *block = new_block();
    (void)id;
    block->address = qemu_plugin_tb_vaddr(tb);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    for (uint32_t i = 0; i < block->instructions; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        block->dots += is_dot(word);
        block->fmlas += is_fmla(word);
        block->load_bytes += loaded(word);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &block->count, 1);
    if (at) {
        if (block->address == at)
            qemu_plugin_register_vcpu_tb_exec_cb(tb, boundary, CB_NO_REGS, NULL);
        qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &executed, block->instructions);
        if (block->dots)
            qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &dots, block->dots);
    }
}

static void begin(void) {
    for (struct chunk *chunk = chunks; chunk; chunk = chunk->next)
        for (size_t i = 0; i < chunk->used; i++)
            chunk->blocks[i].count = 0;
    executed = dots = 0;
    counting = true;
}

/* Copied first: another thread of the guest may still be executing. */
static void end(void) {
    uint64_t number = 0, most = 0;
    counting = false;
    for (struct chunk *chunk = chunks; chunk; chunk = chunk->next)
        most += chunk->used;
    struct block *copy = malloc(most * sizeof *copy + 1);
    if (!copy)
        abort();
    for (struct chunk *chunk = chunks; chunk; chunk = chunk->next)
        for (size_t i = 0; i < chunk->used && number < most; i++)
            if ((copy[number] = chunk->blocks[i]).count)
                number++;
    fwrite(&number, sizeof number, 1, out);
    fwrite(copy, sizeof *copy, number, out);
    free(copy);
    fflush(out);
    fflush(at_out);
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == CLOSE && (int32_t)a1 == -BEGIN)
        begin();
    else if (number == CLOSE && (int32_t)a1 == -END)
        end();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    if (strcmp(info->target_name, "aarch64")) {
        fprintf(stderr, "count.so: made for aarch64, not for %s\n", info->target_name);
        return 1;
    }
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) {
            char name[4096];
            out = fopen(argv[i] + 4, "wb");
            snprintf(name, sizeof name, "%s.at", argv[i] + 4);
            at_out = fopen(name, "wb");
        } else if (!strncmp(argv[i], "at=", 3)) {
            at = strtoull(argv[i] + 3, NULL, 16);
        }
    }
    if (!out || !at_out) {
        fprintf(stderr, "count.so: give a file that can be written as out=FILE\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
