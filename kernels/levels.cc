#include "kernels/levels.h"

#include <algorithm>

#include "kernels/columns.h"
#include "kernels/klt_columns.h"
#include "kernels/rans.h"

namespace tiercel {

bool levels::Fit(std::span<const int8_t> levels, uint32_t tokens) {
  const auto good = [](int8_t level) { return IsLevel(level); };
  return levels.empty() || (levels.size() == tokens && std::all_of(levels.begin(), levels.end(), good));
}

bool levels::Any(std::span<const int8_t> levels, uint32_t exact) {
  const auto behind = levels.subspan(std::min<size_t>(exact, levels.size()));
  return std::any_of(behind.begin(), behind.end(), [](int8_t level) { return level != 0; });
}

void TokenSteps::AddScratch(ScratchSizer& sizer, size_t stride) {
  sizer.Add<int8_t>(stride).Add<uint16_t>(stride).Add<float>(stride).Add<float>(stride);
}

TokenSteps::TokenSteps(ScratchCarver& carver, uint32_t tokens, size_t stride) : tokens_(tokens), stride_(stride) {
  levels_ = carver.Take<int8_t>(stride);
  order_ = carver.Take<uint16_t>(stride);
  steps_ = carver.Take<float>(stride);
  inverses_ = carver.Take<float>(stride);
  std::fill_n(steps_, stride_, 1.0f);
  std::fill_n(inverses_, stride_, 1.0f);
}

void TokenSteps::Set(std::span<const int8_t> levels, uint32_t exact) {
  any_ = true;
  levels::OrderTokens(levels.data(), exact, tokens_, order_);
  for (uint32_t i = 0; i < tokens_ - exact; ++i) {
    steps_[i] = levels::StepOf(levels[order_[i]]);
    inverses_[i] = levels::InverseStepOf(levels[order_[i]]);
  }
}

const float* TokenSteps::Ordered(const float* table, size_t rows, size_t pitch, float* room) const {
  if (!any_) return table;
  for (size_t r = 0; r < rows; ++r) {
    const float* const from = table + r * pitch;
    float* const to = room + r * stride_;
    for (uint32_t i = 0; i < tokens_; ++i) to[i] = from[order_[i]];
    std::fill(to + tokens_, to + stride_, 0.0f);
  }
  return room;
}

uint64_t PutLevels(std::span<const int8_t> levels, uint32_t exact, std::span<const int8_t> offsets,
                   std::span<int32_t> scratch, MutableByteSpan out) {
  const size_t count = levels.size() - exact;
  for (size_t i = 0; i < count; ++i) scratch[i] = levels[exact + i];
  BitWriter bits(out);
  PutIntegers(bits, scratch.first(count));
  for (const int8_t offset : offsets) {
    bits.Finish();
    bits.Put(static_cast<uint8_t>(offset), 8);
  }
  return bits.Finish();
}

const char* GetLevels(ByteSpan part, uint32_t exact, std::span<int8_t> levels, std::span<int8_t> offsets,
                      std::span<int32_t> scratch) {
  const size_t count = levels.size() - exact;
  BitReader bits(part);
  if (!GetIntegers(bits, levels::kLeast, levels::kMost, scratch.first(count))) return "not a list of levels";
  if (bits.bytes_used() + offsets.size() != part.size()) return "its levels do not end where the level part ends";
  std::fill_n(levels.begin(), exact, int8_t{0});
  for (size_t i = 0; i < count; ++i) levels[exact + i] = static_cast<int8_t>(scratch[i]);
  for (size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<int8_t>(part[bits.bytes_used() + i]);
  return nullptr;
}

void ChooseOffsets(std::span<const uint8_t> classes, uint32_t log_bands, int8_t* offsets) {
  const auto columns = static_cast<uint32_t>(classes.size() >> log_bands);
  for (uint32_t b = 1; b < 1u << log_bands; ++b) {
    offsets[b - 1] = static_cast<int8_t>(levels::OffsetFor(classes.data(), columns, log_bands, b));
  }
}

void PutBandClasses(BitWriter& out, std::span<const uint8_t> classes, uint32_t log_bands, const int8_t* offsets,
                    std::span<int32_t> scratch) {
  const size_t columns = classes.size() >> log_bands;
  for (uint32_t b = 0; b < 1u << log_bands; ++b) {
    for (size_t c = 0; c < columns; ++c) {
      const uint8_t* const own = &classes[(c << log_bands) + b];
      const int32_t foretold = b == 0 ? 0 : levels::ForetoldRank(rans::RankOf(own[-1]), offsets[b - 1]);
      scratch[c] = static_cast<int32_t>(rans::RankOf(*own)) - foretold;
    }
    PutIntegers(out, scratch.first(columns));
  }
}

bool GetBandClasses(BitReader& in, std::span<uint8_t> classes, uint32_t log_bands, const int8_t* offsets,
                    std::span<int32_t> scratch) {
  constexpr int32_t kMost = rans::kRanks - 1;
  const size_t columns = classes.size() >> log_bands;
  for (uint32_t b = 0; b < 1u << log_bands; ++b) {
    if (!GetIntegers(in, b == 0 ? 0 : -kMost, kMost, scratch.first(columns))) return false;
    for (size_t c = 0; c < columns; ++c) {
      uint8_t* const own = &classes[(c << log_bands) + b];
      const int32_t foretold = b == 0 ? 0 : levels::ForetoldRank(rans::RankOf(own[-1]), offsets[b - 1]);
      const int32_t rank = foretold + scratch[c];
      if (rank < 0 || rank > kMost) return false;
      *own = rans::ClassOfRank(static_cast<uint32_t>(rank));
    }
  }
  return true;
}

LevelPredictor::LevelPredictor(const Artifact* artifact, uint64_t pos0, uint32_t first_head)
    : artifact_(artifact != nullptr && artifact->has_levels() ? artifact : nullptr), pos0_(pos0), first_head_(first_head) {}

uint64_t LevelPredictor::ScratchBytes(const SegmentShape& k) {
  const size_t stride = ColumnStride(k.tokens);
  return ScratchSizer().Add<uint16_t>(k.dim * stride).Add<float>(k.dim * stride).Add<float>(2 * stride).bytes();
}

void LevelPredictor::Predict(const SegmentShape& k, ByteSpan raw, MutableByteSpan scratch) {
  levels_[0].clear();
  levels_[1].clear();
  if (!any()) return;
  const size_t stride = ColumnStride(k.tokens);
  for (size_t t = logs_.size(); t < k.tokens; ++t) logs_.push_back(levels::Log2(pos0_ + t));
  ScratchCarver carver(scratch);
  uint16_t* const tile = carver.Take<uint16_t>(k.dim * stride);
  float* const x = carver.Take<float>(k.dim * stride);
  float* const sums = carver.Take<float>(2 * stride);
  const LevelWeights* const weights[2] = {artifact_->Levels(k.layer, SegmentKind::kK),
                                          artifact_->Levels(k.layer, SegmentKind::kV)};
  for (size_t plane = 0; plane < 2; ++plane) {
    if (weights[plane] == nullptr) continue;
    float* const z = sums + plane * stride;
    std::fill_n(z, stride, 0.0f);
    const LevelWeights& w = *weights[plane];
    for (uint32_t t = 0; t < k.tokens; ++t) z[t] = levels::Start(logs_[t], w.position_weight, w.position_mean);
  }
  const klt::Fns fns = klt::ActiveFns();
  const klt::Angles& angles = klt::Angles::Of(*artifact_, k.layer, pos0_, stride);
  for (uint32_t head = 0; head < k.heads; ++head) {
    if (!klt::LoadFloats(fns, k, raw, head * k.dim, k.dim, nullptr, tile, stride, x)) return;
    klt::TurnHead(fns, *artifact_, angles.cosine(0), angles.sine(0), stride, x, /*back=*/true);
    const size_t first = size_t{first_head_ + head} * k.dim;
    for (size_t plane = 0; plane < 2; ++plane) {
      if (weights[plane] == nullptr) continue;
      const LevelWeights& w = *weights[plane];
      fns.weigh(k.dim, x, stride, w.mean.data() + first, w.weight.data() + first, sums + plane * stride);
    }
  }
  for (size_t plane = 0; plane < 2; ++plane) {
    if (weights[plane] == nullptr) continue;
    levels_[plane].resize(k.tokens);
    std::transform(sums + plane * stride, sums + plane * stride + k.tokens, levels_[plane].begin(), levels::LevelOf);
  }
}

}  // namespace tiercel
