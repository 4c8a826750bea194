#include "client/cpp/codec_controller.h"

#include <algorithm>
#include <optional>

namespace tiercel {
namespace {

// Until a codec or link is measured: nanoseconds a raw byte, record bytes a raw byte. From one core of a
// Xeon with AVX-512 (docs/reports/codec.txt), ratios from SmolLM2's KV (docs/reports/quality-smollm2.txt, blocks of 256
// tokens at the KL of int8, of fp8, and 3 and 10 times that). Those of EC-C, EC-K and EC-X are with an artifact's levels.
struct Prior {
  CodecId codec;
  double encode, decode;
  std::array<double, kQualityClasses> ratio;  // By class; 0: it does not make that class.
};
constexpr std::array<Prior, 10> kPriors = {{
    {CodecId::kRaw, 0.10, 0.10, {1, 0, 0, 0, 0}},
    {CodecId::kLlf, 0.12, 0.12, {0.76, 0, 0, 0, 0}},
    {CodecId::kLle, 0.25, 0.22, {0.66, 0, 0, 0, 0}},
    {CodecId::kI8, 0.15, 0.10, {0, 0.54, 0, 0, 0}},
    {CodecId::kI8e, 0.50, 0.40, {0, 0.52, 0, 0, 0}},
    {CodecId::kF8, 0.15, 0.10, {0, 0, 0.51, 0, 0}},
    {CodecId::kI4h, 0.25, 0.17, {0, 0, 0, 0.29, 0}},
    {CodecId::kEcC, 0.50, 0.35, {0, 0.32, 0.19, 0.15, 0.11}},
    {CodecId::kEcK, 0.80, 0.55, {0, 0.29, 0.15, 0.11, 0.07}},
    {CodecId::kEcX, 0.90, 0.60, {0, 0.27, 0.13, 0.10, 0.06}},
}};
constexpr Prior kEcCAlone = {CodecId::kEcC, 0.50, 0.35, {0, 0.30, 0.24, 0.20, 0.15}};  // Without an artifact.
constexpr std::array<double, 5> kLinkPriors = {0.15, 0.15, 0.15, 0.8, 1.2};

bool OfSixteenBits(Dtype dtype) { return dtype == Dtype::kBf16 || dtype == Dtype::kFp16; }

// n pieces through two stages that overlap.
double Pipelined(double first, double second, uint32_t n) {
  return ((n - 1) * std::max(first, second) + first + second) / n;
}

const Prior& PriorOf(const Prior& of_table, const CodecController::Ask& ask) {
  return of_table.codec == CodecId::kEcC && !ask.artifact ? kEcCAlone : of_table;
}

template <class Fn>
void ForEachAllowed(const CodecController::Ask& ask, Fn&& fn) {
  for (const Prior& one : kPriors) {
    const Prior& prior = PriorOf(one, ask);
    if (prior.codec != CodecId::kRaw && ask.dtype == Dtype::kOpaque) continue;
    const Codec* codec = FindCodec(prior.codec);
    if (codec == nullptr || (codec->needs_artifact() && !ask.artifact)) continue;
    if (codec->lossy() && !OfSixteenBits(ask.dtype)) continue;
    // The worst class allowed is the cheapest of a codec that makes several.
    for (int quality = static_cast<int>(ask.worst); quality >= 0; --quality) {
      if (prior.ratio[static_cast<size_t>(quality)] == 0) continue;
      fn(prior, static_cast<QualityClass>(quality));
      break;
    }
  }
}

}  // namespace

void CodecController::Mean::Add(double x) {
  count = std::min<uint32_t>(count + 1, 1u << 30);
  value += (x - value) / std::min<uint32_t>(count, 16);
}

const CodecController::Model* CodecController::Find(const Scope& scope) const {
  for (const Model& model : models_) {
    if (model.scope == scope) return &model;
  }
  return nullptr;
}

CodecController::Model& CodecController::At(const Scope& scope) {
  ++clock_;
  for (Model& model : models_) {
    if (!(model.scope == scope)) continue;
    model.last = clock_;
    return model;
  }
  if (models_.size() < kModels) {
    models_.emplace_back();
  } else {
    std::swap(models_.back(), *std::min_element(models_.begin(), models_.end(), [](const Model& a, const Model& b) {
                return a.last < b.last;
              }));
    models_.back() = Model();
  }
  models_.back().scope = scope;
  models_.back().last = clock_;
  return models_.back();
}

CodecController::Candidate CodecController::Predict(const Model* model, const Ask& ask, CodecId codec,
                                                    QualityClass quality) const {
  const auto found = std::find_if(kPriors.begin(), kPriors.end(), [codec](const Prior& p) { return p.codec == codec; });
  const Prior& prior = PriorOf(*found, ask);
  const auto class_index = static_cast<size_t>(quality);
  static const Figures kNone;
  const Figures& mine = model == nullptr ? kNone : model->figures[static_cast<size_t>(codec)][class_index];
  const double raw = static_cast<double>(ask.raw_bytes);
  Candidate out;
  out.codec = codec;
  out.quality = quality;
  out.record_bytes = raw * mine.ratio.Or(prior.ratio[class_index]);
  out.encode = raw * mine.encode.Or(prior.encode);
  out.decode = raw * mine.decode.Or(prior.decode);
  const auto link = static_cast<size_t>(ask.link);
  out.send = out.receive = out.record_bytes * links_[link].Or(kLinkPriors[link]);
  out.storage = out.record_bytes * options_.stored_byte_nanos;
  const uint32_t blocks = std::max(1u, ask.blocks);
  out.total = Pipelined(out.encode, out.send, blocks) + Pipelined(out.receive, out.decode, blocks) + out.storage;
  out.measured = mine.encode.count;
  return out;
}

std::vector<CodecController::Candidate> CodecController::Explain(const Ask& ask) const {
  const Model* model = Find(ask.scope);
  std::vector<Candidate> all;
  ForEachAllowed(ask, [&](const Prior& prior, QualityClass quality) {
    all.push_back(Predict(model, ask, prior.codec, quality));
  });
  std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.total < b.total; });
  return all;
}

CodecController::Choice CodecController::ChoosePut(const Ask& ask) {
  Model& model = At(ask.scope);
  ++model.puts;
  const bool explore = options_.explore_every > 0 && model.puts % options_.explore_every == 0;
  std::optional<Candidate> best, stale;
  uint64_t stalest = 0;
  ForEachAllowed(ask, [&](const Prior& prior, QualityClass quality) {
    const Candidate one = Predict(&model, ask, prior.codec, quality);
    if (!best || one.total < best->total) best = one;
  });
  if (explore) {
    // What could win were it twice as good as thought.
    ForEachAllowed(ask, [&](const Prior& prior, QualityClass quality) {
      const Candidate one = Predict(&model, ask, prior.codec, quality);
      const Figures& figures = model.figures[static_cast<size_t>(one.codec)][static_cast<size_t>(quality)];
      if (one.total > 2 * best->total || one.codec == best->codec) return;
      if (!stale || figures.tried < stalest) {
        stale = one;
        stalest = figures.tried;
      }
    });
  }
  const Candidate& chosen = stale ? *stale : *best;
  model.figures[static_cast<size_t>(chosen.codec)][static_cast<size_t>(chosen.quality)].tried = model.puts;
  return {chosen.codec, chosen.quality, stale.has_value()};
}

Prefer CodecController::ChooseGet(const Ask& ask) const {
  if (ask.worst == QualityClass::kExact) return Prefer::kGood;
  const Model* model = Find(ask.scope);
  std::optional<double> exact, lossy;
  const auto read = [&](const Candidate& one) { return Pipelined(one.receive, one.decode, std::max(1u, ask.blocks)); };
  // The codecs that were seen in this scope; where none was, the best of the table.
  const auto consider = [&](bool only_seen) {
    ForEachAllowed(ask, [&](const Prior& prior, QualityClass) {
      for (size_t quality = 0; quality <= static_cast<size_t>(ask.worst); ++quality) {
        if (prior.ratio[quality] == 0) continue;
        if (only_seen && (model == nullptr || model->figures[static_cast<size_t>(prior.codec)][quality].decode.count == 0)) continue;
        const double takes = read(Predict(model, ask, prior.codec, static_cast<QualityClass>(quality)));
        std::optional<double>& side = quality == 0 ? exact : lossy;
        if (!side || takes < *side) side = takes;
      }
    });
  };
  consider(true);
  const bool exact_seen = exact.has_value(), lossy_seen = lossy.has_value();
  if (!exact_seen || !lossy_seen) {
    const auto keep_exact = exact, keep_lossy = lossy;
    consider(false);
    if (exact_seen) exact = keep_exact;
    if (lossy_seen) lossy = keep_lossy;
  }
  return lossy && exact && *lossy < 0.9 * *exact ? Prefer::kSmall : Prefer::kGood;
}

void CodecController::Encoded(const Scope& scope, CodecId codec, QualityClass quality, uint64_t raw_bytes,
                              uint64_t record_bytes, Nanos took) {
  if (raw_bytes == 0 || static_cast<size_t>(codec) >= kCodecs) return;
  Figures& figures = At(scope).figures[static_cast<size_t>(codec)][static_cast<size_t>(quality)];
  const auto raw = static_cast<double>(raw_bytes);
  figures.encode.Add(static_cast<double>(took) / raw);
  figures.ratio.Add(static_cast<double>(record_bytes) / raw);
}

void CodecController::Decoded(const Scope& scope, CodecId codec, QualityClass quality, uint64_t raw_bytes,
                              uint64_t record_bytes, Nanos took) {
  if (raw_bytes == 0 || static_cast<size_t>(codec) >= kCodecs) return;
  Figures& figures = At(scope).figures[static_cast<size_t>(codec)][static_cast<size_t>(quality)];
  const auto raw = static_cast<double>(raw_bytes);
  figures.decode.Add(static_cast<double>(took) / raw);
  if (figures.encode.count == 0) figures.ratio.Add(static_cast<double>(record_bytes) / raw);
}

void CodecController::Carried(TransportKind link, uint64_t bytes, Nanos took) {
  if (bytes < 16 << 10) return;  // So small that the round trip is all.
  links_[static_cast<size_t>(link)].Add(static_cast<double>(took) / static_cast<double>(bytes));
}

}  // namespace tiercel
