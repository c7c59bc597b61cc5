/* SPDX-License-Identifier: Apache-2.0
 *
 * The generation table: how the core tells writers that the readers of a channel have changed.
 *
 * The core writes it, one cell per channel; a writer loads its channel's cell before each batch and fetches the
 * new readers when it is not the generation it last installed. Why nothing is missed between is argued in
 * towpath_ring.h, "Attaching".
 */
#ifndef TOWPATH_RING_GENERATION_H
#define TOWPATH_RING_GENERATION_H

#include "towpath_ring_memfd.h"
#include "towpath_ring_wait.h"

struct tpr_table {
    struct tpr_memory memory;
    struct tpr_table_page *page;
    uint32_t cells;
};

/* Make a table of `cells` (1..TPR_CELLS_MAX) generations, all 0. Only the core does this. */
static inline int tpr_table_open(struct tpr_table *table, uint32_t cells) {
    struct {
        uint64_t magic;
        uint32_t version, cells;
    } header = {TPR_TABLE_MAGIC, TPR_VERSION, cells};
    if (cells < 1 || cells > TPR_CELLS_MAX)
        return TPR_E_CELL;
    int code = tpr_memory_make_(&table->memory, "towpath-generations", tpr_table_bytes_(cells));
    if (code != TPR_OK)
        return code;
    table->page = (struct tpr_table_page *)table->memory.page;
    table->cells = cells;
    TPR_COPY(TABLE_HEADER, table->page, &header, sizeof header);
    return TPR_OK;
}

static inline int tpr_table_share(const struct tpr_table *table) {
    return tpr_memory_share_(&table->memory);
}

static inline int tpr_table_get(const struct tpr_table *table, uint32_t index, uint64_t *generation) {
    if (tpr_is_forked_(&table->memory))
        return TPR_E_FORKED;
    if (index >= table->cells)
        return TPR_E_CELL;
    *generation = tpr_load_relaxed_(&table->page->cell[index].generation);
    return TPR_OK;
}

/* Count one up; writers that sleep for room on this channel wake. The reader whose coming this tells must
 * look at the tails only after this has returned. */
static inline int tpr_table_bump(struct tpr_table *table, uint32_t index, uint64_t *generation) {
    int code = tpr_table_get(table, index, generation);
    if (code != TPR_OK)
        return code;
    uint64_t *cell = &table->page->cell[index].generation;
    *generation += 1;
    TPR_STORE(GENERATION, cell, *generation, __ATOMIC_RELEASE);
    tpr_fence_(); /* with the fence of a writer's flush: it sees this, or the reader sees its tail */
    tpr_futex_wake_(cell, 0);
    return TPR_OK;
}

static inline void tpr_table_close(struct tpr_table *table) {
    tpr_memory_free_(&table->memory);
}

#endif
