// Types that elements have in memory.
#pragma once

namespace genssl {

enum class ElementType { float32, float64, bfloat16, float16 };

}  // namespace genssl
