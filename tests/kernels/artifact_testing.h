// An artifact (KVA1) made up for tests: random orthogonal transforms with int8 synthesis and its inverse.
#ifndef TIERCEL_TESTS_KERNELS_ARTIFACT_TESTING_H_
#define TIERCEL_TESTS_KERNELS_ARTIFACT_TESTING_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/random.h"
#include "kernels/artifact.h"

namespace tiercel {

struct ArtifactShape {
  uint16_t layers = 2, heads = 2, dim_k = 64, dim_v = 64, rope_dims = 64;
  RopeStyle style = RopeStyle::kHalves;
  std::vector<uint64_t> frequencies;  // Empty: those of a base of 10000.
  uint16_t own_ropes = 0;             // The last so many layers turn half as fast, each with a table of its own.
  bool transforms = true;
  bool whole_layers = true;  // EC-X's transforms, too.
  float step = 0.05f;        // Of every codec and class, times the class.
  bool levels = false;       // What foretells them, too, by some octaves.
};

class ArtifactWriter {
 public:
  explicit ArtifactWriter(const ArtifactShape& shape, uint64_t seed = 1) : shape_(shape), random_(seed) {
    Add(1, 0xffff, 0, 0, 0, AsBytes(std::string_view("{\"model\": \"made up\"}")));
    if (shape.rope_dims > 0) {
      std::vector<uint64_t> rope = shape.frequencies;
      for (int i = 0; shape.frequencies.empty() && i < shape.rope_dims / 2; ++i) {
        rope.push_back(static_cast<uint64_t>(std::pow(10000.0, -2.0 * i / shape.rope_dims) / (2 * std::numbers::pi) * 0x1p64));
      }
      std::vector<uint64_t> own = rope;
      for (uint64_t& turns : own) turns /= 2;
      for (int layer = shape.layers - shape.own_ropes; layer < shape.layers; ++layer) {
        Add(2, static_cast<uint16_t>(layer), 0, 0, 0, std::as_bytes(std::span(own)));
      }
      if (shape.own_ropes < shape.layers) Add(2, 0xffff, 0, 0, 0, std::as_bytes(std::span(rope)));
    }
    const std::vector<float> scales(shape.heads, 0.5f);
    for (uint16_t layer = 0; layer < shape.layers; ++layer) {
      for (uint8_t kind = 1; kind <= 2; ++kind) Add(3, layer, kind, 0, 0, std::as_bytes(std::span(scales)));
    }
    std::vector<std::byte> steps;
    for (uint8_t codec = 7; codec <= 9; ++codec) {
      for (uint8_t quality = 1; quality <= 4; ++quality) {
        const std::array<uint8_t, 4> head = {codec, quality, 0, 0};
        const std::array<float, 3> numbers = {shape.step * quality, 0.001f * quality, 4.0f / quality};
        const auto put = [&steps](ByteSpan bytes) { steps.insert(steps.end(), bytes.begin(), bytes.end()); };
        put(std::as_bytes(std::span(head)));
        put(std::as_bytes(std::span(numbers)));
      }
    }
    Add(4, 0xffff, 0, 0, 0, steps);
    for (uint16_t layer = 0; layer < shape.layers; ++layer) {
      for (uint8_t kind = 1; kind <= 2; ++kind) {
        const uint32_t dim = kind == 1 ? shape.dim_k : shape.dim_v;
        if (dim == 0 || !shape.transforms) continue;
        for (uint8_t head = 0; head < shape.heads; ++head) AddTransform(layer, kind, head, dim);
        if (shape.whole_layers) AddTransform(layer, kind, kWholeLayer, dim * shape.heads);
      }
    }
    for (uint16_t layer = 0; shape.levels && layer < shape.layers; ++layer) {
      for (uint8_t kind = 1; kind <= 2; ++kind) AddLevels(layer, kind, uint32_t{shape.heads} * shape.dim_k);
    }
  }

  std::vector<std::byte> Finish() {
    const uint64_t table = kArtifactHeaderBytes + sections_.size() * kArtifactEntryBytes;
    uint64_t at = (table + 63) / 64 * 64;
    std::vector<std::byte> out(at);
    for (size_t i = 0; i < sections_.size(); ++i) {
      const Section& section = sections_[i];
      std::byte* entry = out.data() + kArtifactHeaderBytes + i * kArtifactEntryBytes;
      StoreLe(entry, section.type);
      StoreLe(entry + 2, section.layer);
      StoreLe(entry + 4, section.kind);
      StoreLe(entry + 5, section.group);
      StoreLe(entry + 6, section.n);
      StoreLe(entry + 8, at);
      StoreLe(entry + 16, uint64_t{section.bytes.size()});
      out.insert(out.end(), section.bytes.begin(), section.bytes.end());
      out.resize((out.size() + 63) / 64 * 64);
      at = out.size();
    }
    std::byte* head = out.data();
    StoreLe(head, kArtifactMagic);
    StoreLe(head + 4, kArtifactVersion);
    StoreLe(head + 8, uint64_t{out.size()});
    StoreLe(head + 16, shape_.layers);
    StoreLe(head + 18, shape_.heads);
    StoreLe(head + 20, shape_.dim_k);
    StoreLe(head + 22, shape_.dim_v);
    StoreLe(head + 24, shape_.rope_dims);
    StoreLe(head + 26, static_cast<uint8_t>(shape_.style));
    StoreLe(head + 28, static_cast<uint32_t>(sections_.size()));
    Seal(out);
    return out;
  }

  // The checksum made right again, for bytes that were spoilt on purpose.
  static void Seal(std::vector<std::byte>& bytes) {
    StoreLe(bytes.data() + 60, uint32_t{0});
    StoreLe(bytes.data() + 60, Crc32c(bytes));
  }

 private:
  struct Section {
    uint16_t type, layer;
    uint8_t kind, group;
    uint16_t n;
    std::vector<std::byte> bytes;
  };

  void Add(uint16_t type, uint16_t layer, uint8_t kind, uint8_t group, uint16_t n, ByteSpan bytes) {
    sections_.push_back({type, layer, kind, group, n, {bytes.begin(), bytes.end()}});
  }

  void AddLevels(uint16_t layer, uint8_t kind, uint32_t n) {
    std::vector<float> numbers = {0.5f, 8.0f, 0, 0};  // Position's weight and mean, and what is reserved.
    const float each = 2.5f / std::sqrt(static_cast<float>(n));
    for (uint32_t j = 0; j < n; ++j) numbers.push_back(static_cast<float>(random_.Below(200)) * 0.01f - 1);
    for (uint32_t j = 0; j < n; ++j) numbers.push_back(each * (static_cast<float>(random_.Below(200)) * 0.01f - 1));
    Add(6, layer, kind, 0, static_cast<uint16_t>(n), std::as_bytes(std::span(numbers)));
  }

  void AddTransform(uint16_t layer, uint8_t kind, uint8_t group, uint32_t n) {
    // Orthogonal rows by Gram and Schmidt, some of them louder than others.
    std::vector<std::vector<double>> rows(n, std::vector<double>(n));
    for (uint32_t i = 0; i < n; ++i) {
      for (double& x : rows[i]) x = static_cast<double>(random_.Next() >> 11) * 0x1p-53 - 0.5;
      for (uint32_t j = 0; j < i; ++j) {
        double dot = 0;
        for (uint32_t k = 0; k < n; ++k) dot += rows[i][k] * rows[j][k];
        for (uint32_t k = 0; k < n; ++k) rows[i][k] -= dot * rows[j][k];
      }
      double norm = 0;
      for (const double x : rows[i]) norm += x * x;
      for (double& x : rows[i]) x /= std::sqrt(norm);
    }
    std::vector<float> mean(n), scale(n), analysis(size_t{n} * n);
    std::vector<int8_t> synthesis((size_t{n} * n + 3) / 4 * 4);
    std::vector<std::vector<double>> m(n, std::vector<double>(2 * n));
    for (uint32_t j = 0; j < n; ++j) {
      mean[j] = static_cast<float>(random_.Below(200)) * 0.01f - 1;
      double top = 0;
      for (uint32_t c = 0; c < n; ++c) top = std::max(top, std::abs(rows[c][j]));
      scale[j] = static_cast<float>(top / 127);
      for (uint32_t c = 0; c < n; ++c) {
        const auto q = static_cast<int8_t>(std::lround(rows[c][j] / scale[j]));
        synthesis[size_t{j} * n + c] = q;
        m[j][c] = double{scale[j]} * q;
      }
      m[j][n + j] = 1;
    }
    for (uint32_t i = 0; i < n; ++i) {  // Gauss and Jordan, with the largest pivot.
      uint32_t best = i;
      for (uint32_t k = i + 1; k < n; ++k) best = std::abs(m[k][i]) > std::abs(m[best][i]) ? k : best;
      std::swap(m[i], m[best]);
      const double pivot = m[i][i];
      for (double& x : m[i]) x /= pivot;
      for (uint32_t k = 0; k < n; ++k) {
        const double factor = m[k][i];
        if (k == i || factor == 0) continue;
        for (uint32_t c = i; c < 2 * n; ++c) m[k][c] -= factor * m[i][c];
      }
    }
    for (uint32_t c = 0; c < n; ++c) {
      for (uint32_t j = 0; j < n; ++j) analysis[size_t{c} * n + j] = static_cast<float>(m[c][n + j]);
    }
    std::vector<std::byte> bytes;
    const auto put = [&bytes](ByteSpan part) { bytes.insert(bytes.end(), part.begin(), part.end()); };
    put(std::as_bytes(std::span(mean)));
    put(std::as_bytes(std::span(scale)));
    put(std::as_bytes(std::span(synthesis)));
    put(std::as_bytes(std::span(analysis)));
    Add(5, layer, kind, group, static_cast<uint16_t>(n), bytes);
  }

  const ArtifactShape shape_;
  SplitMix64 random_;
  std::vector<Section> sections_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_KERNELS_ARTIFACT_TESTING_H_
