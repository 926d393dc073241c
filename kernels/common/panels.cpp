#include "kernels/common/panels.h"

#include "kernels/common/matmul.h"

namespace genssl::GENSSL_ISA {

int64_t panel_columns(bool is_double) {
  return is_double ? kPanelColumns<double> : kPanelColumns<float>;
}

}  // namespace genssl::GENSSL_ISA
