// CodecController picks a block's codec when it is put, and which of two stored records is read, by what it
// has measured: how fast each codec encodes and decodes here, how small it makes this model's blocks, and how
// fast each link carries them.
//
//   cost of a codec = time to put + time to get + bytes stored x what a stored byte is worth
//     time to put n blocks   encode and send overlap, so the slower of them n times, the other once
//     time to get n blocks   the same with receive and decode
//
// What was not measured yet is taken from a table of one machine's figures; now and then a block goes by a
// codec that has not been measured for a while, so that the table is found out. Only codecs whose class is
// accepted compete; RAW always does.
//
// Invariants: never picks a class worse than allowed. Memory is bounded: kModels scopes, the oldest forgotten.
// Ownership: none. Threads: one, the client's driver; Explain copies. Errors: none.
#ifndef TIERCEL_CLIENT_CPP_CODEC_CONTROLLER_H_
#define TIERCEL_CLIENT_CPP_CODEC_CONTROLLER_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "kernels/codec.h"
#include "proto/kv_layout.h"
#include "proto/types.h"
#include "transport/transport.h"

namespace tiercel {

class CodecController {
 public:
  struct Options {
    // Nanoseconds that a byte kept in the cache costs: it pushes another to a slower tier, to be written there
    // and read back at a disk's speed.
    double stored_byte_nanos = 2.0;
    uint32_t explore_every = 64;  // Blocks; 0: never.
  };
  explicit CodecController(const Options& options) : options_(options) {}

  struct Ask {
    Scope scope;
    Dtype dtype = Dtype::kOpaque;
    QualityClass worst = QualityClass::kExact;
    bool artifact = false;  // There is one for this model.
    TransportKind link = TransportKind::kMemfd;
    uint64_t raw_bytes = 0;  // A block's.
    uint32_t blocks = 1;     // That go together.
  };
  // What one codec would cost a block, in nanoseconds; bytes as predicted.
  struct Candidate {
    CodecId codec = CodecId::kRaw;
    QualityClass quality = QualityClass::kExact;
    double record_bytes = 0;
    double encode = 0, send = 0, receive = 0, decode = 0, storage = 0;
    double total = 0;
    uint32_t measured = 0;  // Blocks that these figures come from; 0: the table.
  };
  struct Choice {
    CodecId codec = CodecId::kRaw;
    QualityClass quality = QualityClass::kExact;
    bool exploring = false;
  };

  Choice ChoosePut(const Ask& ask);
  // Of an exact record and a lossy one that the reader accepts: which is here sooner.
  Prefer ChooseGet(const Ask& ask) const;
  // Cheapest first.
  std::vector<Candidate> Explain(const Ask& ask) const;

  void Encoded(const Scope& scope, CodecId codec, QualityClass quality, uint64_t raw_bytes,
               uint64_t record_bytes, Nanos took);
  void Decoded(const Scope& scope, CodecId codec, QualityClass quality, uint64_t raw_bytes,
               uint64_t record_bytes, Nanos took);
  // A whole payload, from the first byte to the last as seen here.
  void Carried(TransportKind link, uint64_t bytes, Nanos took);

 private:
  // A moving average that weighs its first values equally.
  struct Mean {
    double value = 0;
    uint32_t count = 0;
    void Add(double x);
    double Or(double prior) const { return count > 0 ? value : prior; }
  };
  struct Figures {
    Mean encode, decode;  // Nanoseconds a raw byte.
    Mean ratio;           // Record bytes a raw byte.
    uint64_t tried = 0;   // The block count when it was last encoded.
  };
  static constexpr size_t kModels = 16;
  struct Model {
    Scope scope;
    bool used = false;
    uint64_t last = 0;
    uint64_t puts = 0;
    std::array<std::array<Figures, kQualityClasses>, kCodecs> figures;
  };

  const Model* Find(const Scope& scope) const;
  Model& At(const Scope& scope);
  Candidate Predict(const Model* model, const Ask& ask, CodecId codec, QualityClass quality) const;

  const Options options_;
  std::vector<Model> models_;
  uint64_t clock_ = 0;
  std::array<Mean, 5> links_;  // Nanoseconds a byte, by TransportKind.
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CODEC_CONTROLLER_H_
