// An array whose element type is known only at run time, in the arguments of launchers.
#pragma once

#include "kernels/common/element_type.h"

namespace genssl {

struct Array {
  const void* data;
  ElementType type;
};

}  // namespace genssl
