// same_ops.c through the entry points of C++.
#include "same_ops.c"
