/* Included before everything else in a build of the extension whose process can be killed around any of its stores to
 * shared memory (towpath_ring_steps.h). */
void towpath_kill_at_step(int step, int phase);
#define TOWPATH_RING_ON_STEP(step, phase) towpath_kill_at_step((step), (phase))
