// Every codec beside a copy, lz4 and zstd -1 on the same bytes, in one run: GB/s of decoded bf16 on one
// core, and where each stands against what it is to reach.
//
//   codec_ladder [--quick] [--isa scalar|avx2|avx512] [--only CODEC]
//
// A segment is K of 256 tokens, a normal distribution a channel with outlier channels. Encoders read
// segments that no cache holds, decoders write such; the copy does both. "levels": a step of its own for each
// token; "foretell" is what finding them costs, for the K and the V of a layer together, by K's bytes. All lanes
// take turns, in another order each round; a figure is the median [least most] of the rounds. Time is the
// thread's own, so what else runs on the machine costs cache and frequency, but not turns.
#include <fmt/format.h>
#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/artifact.h"
#include "kernels/levels.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

constexpr uint64_t kColdBytes = uint64_t{512} << 20;
CodecId g_only = CodecId::kAuto;  // All.
constexpr double kGoalCopy = 18;  // GB/s of the copy that the goals are meant for.

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Slots one after another, together more than a cache holds.
class Cold {
 public:
  explicit Cold(ByteSpan fill) : slot_((fill.size() + 4095) / 4096 * 4096), memory_(kColdBytes / slot_ * slot_ + 4096) {
    base_ = memory_.data() + (4096 - reinterpret_cast<uintptr_t>(memory_.data()) % 4096) % 4096;
    for (uint64_t at = 0; at < slots() * slot_; at += slot_) std::memcpy(base_ + at, fill.data(), fill.size());
  }
  MutableByteSpan Next(uint64_t bytes) {
    at_ = (at_ + slot_) % (slots() * slot_);
    return {base_ + at_, bytes};
  }

 private:
  uint64_t slots() const { return kColdBytes / slot_; }

  uint64_t slot_;
  std::vector<std::byte> memory_;
  std::byte* base_ = nullptr;  // At a page's start, as blocks lie in a node's memory.
  uint64_t at_ = 0;
};

struct Figure {
  std::vector<double> rates;  // GB/s, a round each.
  double median() const {
    std::vector<double> sorted = rates;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  std::string text() const {
    const auto [least, most] = std::minmax_element(rates.begin(), rates.end());
    return fmt::format("{:6.2f} [{:5.2f} {:5.2f}]", median(), *least, *most);
  }
};

struct Lane {
  std::string name;
  double bits = 16;
  double encode_goal = 0, decode_goal = 0;  // At kGoalCopy; 0: none.
  std::function<void()> run[2];             // Encode and decode one segment; the second may be empty.
  Figure figures[2];
};

class Ladder {
 public:
  Ladder(const SegmentShape& shape, bool goals, bool whole_layer)
      : shape_(shape), goals_(goals), raw_(PlaneLikeKv(shape, 1)), source_(raw_), sink_(raw_), codes_(raw_.size()) {
    ArtifactShape made;
    made.layers = 1;
    made.heads = static_cast<uint16_t>(shape.heads);
    made.dim_k = made.dim_v = made.rope_dims = static_cast<uint16_t>(shape.dim);
    made.whole_layers = whole_layer;
    made.step = 0.3f;
    made.levels = true;
    const auto artifact = Artifact::Parse(ArtifactWriter(made).Finish());
    TIERCEL_CHECK(artifact.has_value());
    artifact_ = *artifact;
    SplitMix64 random(3);
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      levels_.push_back(static_cast<int8_t>(std::clamp<long>(std::lround(2.5 * NormalSample(random)), levels::kLeast, levels::kMost)));
    }
  }

  void AddCopy() {
    Lane lane;
    lane.name = "memcpy";
    lane.run[0] = [this] {
      std::memcpy(sink_.Next(raw_.size()).data(), source_.Next(raw_.size()).data(), raw_.size());
    };
    lanes_.push_back(std::move(lane));
  }
  // What a record's encoder does once for the K and V of a layer, beside coding them.
  void AddForetelling() {
    if (g_only != CodecId::kAuto) return;
    Lane lane;
    lane.name = "foretell";
    scratch_.resize(std::max<uint64_t>(scratch_.size(), LevelPredictor::ScratchBytes(shape_)));
    auto predictor = std::make_shared<LevelPredictor>(artifact_.get(), 0, 0);
    lane.run[0] = [this, predictor] { predictor->Predict(shape_, source_.Next(raw_.size()), scratch_); };
    lanes_.push_back(std::move(lane));
  }
  void AddCodec(CodecId id, double encode_goal, double decode_goal, bool levels = false) {
    if (g_only != CodecId::kAuto && g_only != id) return;
    const Codec& codec = *FindCodec(id);
    Lane lane;
    lane.name = fmt::format("{}{}", Name(id), levels ? " levels" : "");
    lane.encode_goal = encode_goal;
    lane.decode_goal = decode_goal;
    scratch_.resize(std::max<uint64_t>(scratch_.size(), codec.scratch_bytes(shape_)));
    auto coded = std::make_shared<std::vector<std::byte>>(raw_.size());
    const auto info = codec.Encode(shape_, raw_, *coded, Context(levels));
    TIERCEL_CHECK(info.has_value());
    coded->resize(info->bytes);
    lane.bits = BitsOf(info->bytes);
    lane.run[0] = [this, &codec, levels] {
      TIERCEL_CHECK(codec.Encode(shape_, source_.Next(raw_.size()), codes_, Context(levels)).has_value());
    };
    lane.run[1] = [this, &codec, coded, params = info->params] {
      const MutableByteSpan out = sink_.Next(raw_.size());
      const uint64_t step = codec.step_bytes(shape_);
      for (uint64_t at = 0; at < out.size(); at += step) {
        const MutableByteSpan part = out.subspan(at, std::min(step, out.size() - at));
        TIERCEL_CHECK(codec.Decode(shape_, params, *coded, at, part, Context(false)).has_value());
      }
    };
    lanes_.push_back(std::move(lane));
  }
  void AddGeneral(bool zstd) {
    if (g_only != CodecId::kAuto) return;
    Lane lane;
    lane.name = zstd ? "zstd -1" : "lz4";
    const size_t size = raw_.size();
    const auto n = static_cast<int>(size);
    auto coded = std::make_shared<std::vector<char>>(zstd ? ZSTD_compressBound(size)
                                                          : static_cast<size_t>(LZ4_compressBound(n)));
    const auto encode = [coded, zstd, size, n](ByteSpan from) {
      const auto* bytes = reinterpret_cast<const char*>(from.data());
      return zstd ? ZSTD_compress(coded->data(), coded->size(), bytes, size, 1)
                  : static_cast<size_t>(LZ4_compress_default(bytes, coded->data(), n, static_cast<int>(coded->size())));
    };
    const size_t coded_size = encode(raw_);
    lane.bits = BitsOf(coded_size);
    lane.run[0] = [this, encode] { TIERCEL_CHECK(encode(source_.Next(raw_.size())) > 0); };
    lane.run[1] = [this, coded, zstd, size, n, coded_size] {
      char* const out = reinterpret_cast<char*>(sink_.Next(size).data());
      if (zstd) {
        TIERCEL_CHECK(ZSTD_decompress(out, size, coded->data(), coded_size) == size);
      } else {
        TIERCEL_CHECK(LZ4_decompress_safe(coded->data(), out, static_cast<int>(coded_size), n) == n);
      }
    };
    lanes_.push_back(std::move(lane));
  }

  void Run(int rounds, double seconds) {
    struct Turn {
      Lane* lane;
      int way;
    };
    std::vector<Turn> turns;
    for (Lane& lane : lanes_) {
      for (int way = 0; way < 2; ++way) {
        if (lane.run[way]) turns.push_back({&lane, way});
      }
    }
    SplitMix64 random(1);
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[random.Below(i)]);
      for (const Turn& turn : turns) {
        turn.lane->run[turn.way]();
        const double began = ThreadSeconds();
        double spent = 0;
        uint64_t bytes = 0;
        while (spent < seconds) {
          turn.lane->run[turn.way]();
          bytes += raw_.size();
          spent = ThreadSeconds() - began;
        }
        turn.lane->figures[turn.way].rates.push_back(static_cast<double>(bytes) / spent * 1e-9);
      }
    }
  }

  void Print() const {
    fmt::print("\nK of {} tokens, {} heads of {}, bf16, {} KiB; GB/s of decoded bytes, median [least most]\n", shape_.tokens,
               shape_.heads, shape_.dim, raw_.size() >> 10);
    fmt::print("{:11} {:>6} {:>22} {:>22}\n", "", "bits", "encode", "decode");
    for (const Lane& lane : lanes_) {
      fmt::print("{:11} {:6.2f} {:>22} {:>22}\n", lane.name, lane.bits, lane.figures[0].text(),
                 lane.run[1] ? lane.figures[1].text() : "");
    }
    const double copy = lanes_.front().figures[0].median();
    if (goals_) fmt::print("goals, meant for a copy of {} GB/s, times {:.2f} / {}\n", kGoalCopy, copy, kGoalCopy);
    for (const Lane& lane : lanes_) {
      for (int way = 0; way < 2; ++way) {
        const double goal = way == 0 ? lane.encode_goal : lane.decode_goal;
        if (goal == 0) continue;
        const double scaled = goal * copy / kGoalCopy;
        const double reached = lane.figures[way].median();
        fmt::print("GOAL {}-{} {:.2f} GB/s {:.2f} {}\n", lane.name, way == 0 ? "encode" : "decode", reached, scaled,
                   reached >= scaled ? "MET" : "MISSED");
      }
    }
  }

 private:
  CodecContext Context(bool levels) {
    CodecContext context;
    if (levels) context.levels = levels_;
    context.scratch = scratch_;
    context.quality = QualityClass::kBalanced;
    context.artifact = artifact_.get();
    return context;
  }
  double BitsOf(uint64_t coded) const { return 16.0 * static_cast<double>(coded) / static_cast<double>(raw_.size()); }

  const SegmentShape shape_;
  const bool goals_;
  const std::vector<std::byte> raw_;
  Cold source_, sink_;
  std::vector<std::byte> codes_, scratch_;
  std::shared_ptr<const Artifact> artifact_;
  std::vector<int8_t> levels_;  // Of tokens as unlike as a model's.
  std::vector<Lane> lanes_;
};

void Measure(uint32_t heads, uint32_t dim, bool goals, bool whole_layer, int rounds, double seconds) {
  Ladder ladder(MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 256, heads, dim), goals, whole_layer);
  const auto goal = [&](double value) { return goals ? value : 0; };
  ladder.AddCopy();
  ladder.AddGeneral(false);
  ladder.AddGeneral(true);
  ladder.AddCodec(CodecId::kLlf, goal(8), goal(8));
  ladder.AddCodec(CodecId::kLle, goal(5), goal(4.5));
  ladder.AddCodec(CodecId::kI8, goal(10), goal(10));
  ladder.AddCodec(CodecId::kI8e, 0, 0);
  ladder.AddCodec(CodecId::kF8, 0, 0);
  ladder.AddCodec(CodecId::kI4h, goal(4), goal(6));
  ladder.AddForetelling();
  ladder.AddCodec(CodecId::kEcC, goal(2.5), goal(3));
  ladder.AddCodec(CodecId::kEcC, 0, 0, /*levels=*/true);
  ladder.AddCodec(CodecId::kEcK, goal(1.5), goal(2));
  ladder.AddCodec(CodecId::kEcK, 0, 0, /*levels=*/true);
  if (whole_layer) ladder.AddCodec(CodecId::kEcX, 0, 0);
  if (whole_layer) ladder.AddCodec(CodecId::kEcX, 0, 0, /*levels=*/true);
  ladder.Run(rounds, seconds);
  ladder.Print();
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--quick") {
      quick = true;
    } else if (std::string_view(argv[i]) == "--only" && i + 1 < argc && tiercel::ParseCodecId(argv[i + 1])) {
      tiercel::g_only = *tiercel::ParseCodecId(argv[++i]);
    } else if (std::string_view(argv[i]) == "--isa" && i + 1 < argc) {
      const std::string_view name = argv[++i];
      bool known = false;
      for (const auto isa : tiercel::kAllIsas) known |= tiercel::Name(isa) == name && tiercel::ForceKernelIsa(isa);
      if (known) continue;
      fmt::print(stderr, "codec_ladder: this CPU has no {}\n", name);
      return 2;
    } else {
      fmt::print(stderr, "usage: codec_ladder [--quick] [--isa scalar|avx2|avx512] [--only CODEC]\n");
      return 2;
    }
  }
  fmt::print("instructions: {}\n", tiercel::Name(tiercel::ActiveKernelIsa()));
  const int rounds = quick ? 5 : 15;
  const double seconds = quick ? 0.02 : 0.05;
  tiercel::Measure(8, 128, /*goals=*/true, /*whole_layer=*/false, rounds, seconds);
  tiercel::Measure(3, 64, /*goals=*/false, /*whole_layer=*/true, rounds, seconds);
  return 0;
}
