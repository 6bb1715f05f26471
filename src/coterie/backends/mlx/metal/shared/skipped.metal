// Slots whose weight is this small are skipped: what stands in their output, infinity and NaN included, is never added.

namespace coterie {

METAL_FUNC bool skipped(float weight) {
    return abs(weight) < 1e-10f;
}

}  // namespace coterie
