/* An inline function of the module's own, in a folder that is called as the kernel's is. */
static inline void poke(volatile int *where)
{
	*where = 3;
}
