// How wide the panels of the packed micro-kernel are, for those who allocate them; see matmul.h.
#pragma once

#include <stdint.h>

#include "kernels/common/isa.h"

// Columns of a panel of fp64 or fp32.
GENSSL_DECLARE_KERNEL(int64_t, panel_columns, (bool is_double))
