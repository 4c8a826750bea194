#include "kernels/artifact.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/mutex.h"

namespace tiercel {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read where they lie");

enum SectionType : uint16_t { kAbout = 1, kRope = 2, kHeadScales = 3, kSteps = 4, kTransform = 5, kLevels = 6 };
constexpr uint16_t kNoLayer = 0xffff;
constexpr size_t kStepBytes = 16;

uint64_t IdOf(ByteSpan bytes) {
  std::array<unsigned char, 32> digest;
  unsigned size = 0;
  TIERCEL_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  return LoadLe<uint64_t>(reinterpret_cast<const std::byte*>(digest.data()));
}

template <class... Args>
tl::unexpected<Error> Bad(fmt::format_string<Args...> text, Args&&... args) {
  return Fail(Code::kDataLoss, "artifact: " + fmt::format(text, std::forward<Args>(args)...));
}

bool IsZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

struct Artifact::Entry {
  uint16_t type = 0, layer = 0;
  uint8_t kind = 0, group = 0;
  uint16_t n = 0;
  uint64_t offset = 0, bytes = 0;

  std::string name() const { return fmt::format("section {} of layer {}, kind {}, group {}", type, layer, kind, group); }
  auto order() const { return std::tuple(type, layer, kind, group); }
};

Result<std::shared_ptr<const Artifact>> Artifact::Parse(ByteSpan given) {
  if (given.size() < kArtifactHeaderBytes) return Bad("{} bytes cannot hold the header", given.size());
  if (given.size() > kMaxArtifactBytes) return Bad("{} bytes, at most {}", given.size(), kMaxArtifactBytes);
  // One that make_shared would need is not to be had: the constructor is private.
  const std::shared_ptr<Artifact> made(new Artifact);
  made->bytes_.assign(given.begin(), given.end());
  const std::byte* at = made->bytes_.data();
  if (LoadLe<uint32_t>(at) != kArtifactMagic) return Bad("magic is {:#010x}, not KVA1", LoadLe<uint32_t>(at));
  if (LoadLe<uint16_t>(at + 4) != kArtifactVersion) {
    return Fail(Code::kUnimplemented, fmt::format("artifact: version {} is not known here, only {}",
                                                  LoadLe<uint16_t>(at + 4), kArtifactVersion));
  }
  if (LoadLe<uint64_t>(at + 8) != given.size()) {
    return Bad("file_bytes is {}, {} bytes are here", LoadLe<uint64_t>(at + 8), given.size());
  }
  const uint32_t crc = LoadLe<uint32_t>(at + 60);
  constexpr std::array<std::byte, 4> kZero{};
  uint32_t sum = Crc32c(given.first(60));
  sum = Crc32c(kZero, sum);
  sum = Crc32c(given.subspan(64), sum);
  if (sum != crc) return Bad("its bytes sum to crc32c {:08x}, {:08x} was written", sum, crc);
  made->layers_ = LoadLe<uint16_t>(at + 16);
  made->kv_heads_ = LoadLe<uint16_t>(at + 18);
  made->head_dim_k_ = LoadLe<uint16_t>(at + 20);
  made->head_dim_v_ = LoadLe<uint16_t>(at + 22);
  made->rope_dims_ = LoadLe<uint16_t>(at + 24);
  const auto style = LoadLe<uint8_t>(at + 26);
  const auto count = LoadLe<uint32_t>(at + 28);
  if (made->layers_ == 0 || made->kv_heads_ == 0 || made->head_dim_k_ == 0) return Bad("layers, kv_heads or head_dim_k is 0");
  if (made->rope_dims_ % 2 != 0 || made->rope_dims_ > made->head_dim_k_) {
    return Bad("rope_dims is {} of {}", made->rope_dims_, made->head_dim_k_);
  }
  if (style > 1) return Bad("rope_style is {}", style);
  made->rope_style_ = static_cast<RopeStyle>(style);
  if (LoadLe<uint16_t>(at + 6) != 0 || LoadLe<uint8_t>(at + 27) != 0 || !IsZero({at + 32, 28})) {
    return Bad("a reserved field of the header is not 0");
  }
  if (count > (given.size() - kArtifactHeaderBytes) / kArtifactEntryBytes) return Bad("{} sections do not fit", count);
  std::optional<Entry> before;
  uint64_t end = kArtifactHeaderBytes + uint64_t{count} * kArtifactEntryBytes;
  for (uint32_t i = 0; i < count; ++i) {
    const std::byte* from = at + kArtifactHeaderBytes + i * kArtifactEntryBytes;
    Entry entry{LoadLe<uint16_t>(from),     LoadLe<uint16_t>(from + 2), LoadLe<uint8_t>(from + 4), LoadLe<uint8_t>(from + 5),
                LoadLe<uint16_t>(from + 6), LoadLe<uint64_t>(from + 8), LoadLe<uint64_t>(from + 16)};
    if (before && !(before->order() < entry.order())) return Bad("{} is out of order or there twice", entry.name());
    if (entry.offset % 64 != 0 || entry.offset < end || entry.offset > given.size() ||
        entry.bytes > given.size() - entry.offset) {
      return Bad("{}: bytes {}+{} of {}", entry.name(), entry.offset, entry.bytes, given.size());
    }
    end = entry.offset + entry.bytes;
    if (const Status read = made->ReadSection(entry); !read) return tl::unexpected<Error>(read.error());
    before = entry;
  }
  if (made->rope_dims_ != 0 && made->common_rope_.empty() && made->own_ropes_.size() < made->layers_) {
    uint16_t without = 0;
    while (made->has_own_rope(without)) ++without;
    return Bad("rope_dims is {}, layer {} has no frequencies", made->rope_dims_, without);
  }
  made->id_ = IdOf(given);
  return std::shared_ptr<const Artifact>(made);
}

Result<std::span<const float>> Artifact::Floats(uint64_t at, uint64_t count, const char* what) const {
  const auto* numbers = reinterpret_cast<const float*>(bytes_.data() + at);  // A multiple of 4 from an aligned start.
  const std::span<const float> all(numbers, count);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!std::isfinite(all[i])) return Bad("{}[{}] is not finite", what, i);
  }
  return all;
}

Status Artifact::ReadSection(const Entry& entry) {
  const std::byte* at = bytes_.data() + entry.offset;
  const bool placed = entry.type == kHeadScales || entry.type == kTransform || entry.type == kLevels;
  if (placed && (entry.layer >= layers_ || entry.kind < 1 || entry.kind > 2)) return Bad("{}: no such layer or kind", entry.name());
  const bool of_layer = entry.type == kRope && entry.layer < layers_;
  if (!placed && entry.type <= kLevels && ((entry.layer != kNoLayer && !of_layer) || entry.kind != 0 || entry.group != 0)) {
    return Bad("{} belongs to {}", entry.name(), entry.type == kRope ? "no layer that is here" : "no layer");
  }
  switch (entry.type) {
    case kAbout:
      about_ = {reinterpret_cast<const char*>(at), entry.bytes};
      return OkStatus();
    case kRope:
      return ReadRope(entry);
    case kHeadScales: {
      if (entry.bytes != uint64_t{kv_heads_} * 4) return Bad("{}: {} bytes for {} heads", entry.name(), entry.bytes, kv_heads_);
      TIERCEL_ASSIGN(const auto scales, Floats(entry.offset, kv_heads_, "head_scales"));
      if (std::any_of(scales.begin(), scales.end(), [](float s) { return s <= 0; })) return Bad("{}: a scale is not positive", entry.name());
      head_scales_[{entry.layer, entry.kind, uint8_t{0}}] = scales;
      return OkStatus();
    }
    case kSteps: {
      if (entry.bytes % kStepBytes != 0 || entry.bytes > 64 * kStepBytes) return Bad("{}: {} bytes", entry.name(), entry.bytes);
      for (uint64_t i = 0; i < entry.bytes; i += kStepBytes) {
        TIERCEL_ASSIGN(const auto numbers, Floats(entry.offset + i + 4, 3, "steps"));
        const auto codec = LoadLe<uint8_t>(at + i);
        const auto quality = LoadLe<uint8_t>(at + i + 1);
        if (codec < 7 || codec > 9 || quality < 1 || quality > 4 || LoadLe<uint16_t>(at + i + 2) != 0 || numbers[0] <= 0) {
          return Bad("steps[{}]: codec {}, class {}, step {}", i / kStepBytes, codec, quality, numbers[0]);
        }
        steps_.push_back({static_cast<CodecId>(codec), static_cast<QualityClass>(quality), numbers[0], numbers[1], numbers[2]});
      }
      return OkStatus();
    }
    case kTransform:
      return ReadTransform(entry);
    case kLevels:
      return ReadLevels(entry);
    default:
      return OkStatus();
  }
}

Status Artifact::ReadRope(const Entry& entry) {
  if (entry.bytes != uint64_t{rope_dims_} * 4) return Bad("{}: {} bytes for {} dimensions", entry.name(), entry.bytes, rope_dims_);
  const std::span<const uint64_t> turns(reinterpret_cast<const uint64_t*>(bytes_.data() + entry.offset), rope_dims_ / 2);
  if (entry.layer == kNoLayer) {
    common_rope_ = turns;
  } else {
    own_ropes_[entry.layer] = turns;
  }
  return OkStatus();
}

Status Artifact::ReadTransform(const Entry& entry) {
  const auto kind = static_cast<SegmentKind>(entry.kind);
  const uint64_t n = entry.n;
  const uint64_t wanted = entry.group == kWholeLayer ? uint64_t{kv_heads_} * head_dim(kind) : head_dim(kind);
  if (n == 0 || n != wanted || n > kMaxTransform || (entry.group != kWholeLayer && entry.group >= kv_heads_)) {
    return Bad("{}: {} dimensions, the model has {}", entry.name(), n, wanted);
  }
  const uint64_t matrix = (n * n + 3) / 4 * 4;
  if (entry.bytes != 8 * n + matrix + 4 * n * n) return Bad("{}: {} bytes for {} dimensions", entry.name(), entry.bytes, n);
  KltTransform transform;
  transform.n = entry.n;
  TIERCEL_ASSIGN(transform.mean, Floats(entry.offset, n, "mean"));
  TIERCEL_ASSIGN(transform.scale, Floats(entry.offset + 4 * n, n, "scale"));
  if (std::any_of(transform.scale.begin(), transform.scale.end(), [](float s) { return s == 0; })) return Bad("{}: a scale is 0", entry.name());
  transform.synthesis = {reinterpret_cast<const int8_t*>(bytes_.data() + entry.offset + 8 * n), n * n};
  TIERCEL_ASSIGN(transform.analysis, Floats(entry.offset + 8 * n + matrix, n * n, "analysis"));
  const uint32_t row = transform.row_pairs();
  transform.pairs.resize(n * row);
  for (uint64_t j = 0; j < n; ++j) {
    for (uint64_t c = 0; c < n; ++c) {
      const auto half = static_cast<uint32_t>(static_cast<uint16_t>(int16_t{transform.synthesis[j * n + c]}));
      int32_t& pair = transform.pairs[j * row + c / 2];
      pair = static_cast<int32_t>(static_cast<uint32_t>(pair) | half << (c % 2 * 16));
    }
  }
  transform.raised.resize(n * n + 3);
  std::transform(transform.synthesis.begin(), transform.synthesis.end(), transform.raised.begin(),
                 [](int8_t v) { return static_cast<uint8_t>(v + 128); });
  transforms_[{entry.layer, entry.kind, entry.group}] = std::move(transform);
  return OkStatus();
}

Status Artifact::ReadLevels(const Entry& entry) {
  constexpr uint64_t kHead = 16;
  const uint64_t n = uint64_t{kv_heads_} * head_dim_k_;
  if (entry.n != n || entry.group != 0) return Bad("{}: {} dimensions, K has {} of all heads, group 0", entry.name(), entry.n, n);
  if (entry.bytes != kHead + 8 * n) return Bad("{}: {} bytes for {} dimensions", entry.name(), entry.bytes, n);
  if (!IsZero({bytes_.data() + entry.offset + 8, 8})) return Bad("{}: a reserved field is not 0", entry.name());
  TIERCEL_ASSIGN(const auto position, Floats(entry.offset, 2, "position"));
  LevelWeights levels{position[0], position[1], {}, {}};
  TIERCEL_ASSIGN(levels.mean, Floats(entry.offset + kHead, n, "mean"));
  TIERCEL_ASSIGN(levels.weight, Floats(entry.offset + kHead + 4 * n, n, "weight"));
  levels_[{entry.layer, entry.kind, uint8_t{0}}] = levels;
  return OkStatus();
}

std::span<const uint64_t> Artifact::rope(uint16_t layer) const {
  const auto found = own_ropes_.find(layer);
  return found == own_ropes_.end() ? common_rope_ : found->second;
}

const LevelWeights* Artifact::Levels(uint16_t layer, SegmentKind kind) const {
  const auto found = levels_.find({layer, static_cast<uint8_t>(kind), uint8_t{0}});
  return found == levels_.end() ? nullptr : &found->second;
}

const KltTransform* Artifact::Find(uint16_t layer, SegmentKind kind, uint8_t group) const {
  const auto found = transforms_.find({layer, static_cast<uint8_t>(kind), group});
  return found == transforms_.end() ? nullptr : &found->second;
}

std::span<const float> Artifact::HeadScales(uint16_t layer, SegmentKind kind) const {
  const auto found = head_scales_.find({layer, static_cast<uint8_t>(kind), uint8_t{0}});
  return found == head_scales_.end() ? std::span<const float>() : found->second;
}

std::optional<QualityStep> Artifact::StepOf(CodecId codec, QualityClass quality) const {
  std::optional<QualityStep> best;
  for (const QualityStep& step : steps_) {
    if (step.codec != codec || step.quality > quality) continue;
    if (!best || step.quality > best->quality) best = step;
  }
  return best;
}

namespace {

struct Registry {
  Mutex mutex;
  std::map<uint64_t, std::shared_ptr<const Artifact>> all TIERCEL_GUARDED_BY(mutex);
};
Registry& InUse() {
  static Registry registry;
  return registry;
}

}  // namespace

Status UseArtifact(std::shared_ptr<const Artifact> artifact) {
  Registry& registry = InUse();
  MutexLock lock(registry.mutex);
  if (registry.all.size() >= kMaxArtifacts && !registry.all.contains(artifact->id())) {
    return Fail(Code::kResourceExhausted, fmt::format("{} artifacts are in use already", kMaxArtifacts));
  }
  registry.all[artifact->id()] = std::move(artifact);
  return OkStatus();
}

void DropArtifact(uint64_t id) {
  MutexLock lock(InUse().mutex);
  InUse().all.erase(id);
}

std::shared_ptr<const Artifact> FindArtifact(uint64_t id) {
  if (id == 0) return nullptr;
  MutexLock lock(InUse().mutex);
  const auto found = InUse().all.find(id);
  return found == InUse().all.end() ? nullptr : found->second;
}

}  // namespace tiercel
