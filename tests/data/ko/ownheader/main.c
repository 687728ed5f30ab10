/* Faults in a header of its own. */
#include "include/own.h"

void uses_own_header(volatile int *where)
{
	poke(where);
}
