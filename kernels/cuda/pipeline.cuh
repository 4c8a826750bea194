// Which kernels a batch runs, in which order and on how large grids: the same for whoever launches them.
//
// Launch is called as launch(kernel, {x, y}, threads, shared bytes, kernel's arguments ...); what it launches
// runs in this order, each kernel once the one before it has ended.
#ifndef TIERCEL_KERNELS_CUDA_PIPELINE_CUH_
#define TIERCEL_KERNELS_CUDA_PIPELINE_CUH_

#include "kernels/cuda/record.cuh"

namespace tiercel::gpu {

struct Grid {
  uint32_t x = 1, y = 1;
};

// Blocks of a grid's row, so that a thread has about `each` of `items`.
constexpr uint32_t BlocksFor(uint64_t items, uint32_t threads, uint32_t each) {
  const uint64_t blocks = (items + uint64_t{threads} * each - 1) / (uint64_t{threads} * each);
  return blocks < 1 ? 1 : blocks > 256 ? 256 : static_cast<uint32_t>(blocks);
}

struct Grids {
  Grid blocks, one, values, words, vectors, columns, pieces, tiles, tokens;
  static constexpr uint32_t kThreads = 256;
  static constexpr uint32_t kFewThreads = 128;  // Where a warp has 4 KiB of shared memory.
  static constexpr uint32_t kVectorShared = kFewThreads / 32 * 4 * fixed::kMaxDim;
  static constexpr uint32_t kColumnShared = kFewThreads / 32 * 2 * 32 * rans::kSymbols;

  Grids(const BatchShape& shape, uint32_t n_blocks) {
    uint64_t most = 0, most_columns = 0, most_vectors = 0, most_tiles = 0;
    for (uint32_t i = 0; i < shape.kinds; ++i) {
      const KindShape& kind = shape.kind[i];
      const auto larger = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
      most = larger(most, kind.values);
      most_columns = larger(most_columns, uint64_t{kind.heads} * kind.dim);
      const uint64_t down = (kind.dim + kTile - 1) / kTile;
      most_tiles = larger(most_tiles, kind.heads * down * ((shape.tokens + kTile - 1) / kTile));
      most_vectors = larger(most_vectors, uint64_t{kind.heads} * shape.tokens);
    }
    const uint32_t y = n_blocks * shape.segments;
    blocks = {1, n_blocks};
    one = {1, y};
    values = {BlocksFor(most, kThreads, 8), y};
    words = {BlocksFor(most * shape.elem / 8, kThreads, 4), y};
    vectors = {BlocksFor(most_vectors * 32, kFewThreads, 4), y};
    columns = {BlocksFor(most_columns, kFewThreads, 1), y};
    tiles = {BlocksFor(most_tiles, 1, 1), y};
    tokens = {BlocksFor(shape.tokens, kFewThreads, 1), y};
    pieces = {BlocksFor(most * shape.elem, kThreads, kCrcPiece / 32), y};
  }
};

template <class Launch>
void EncodeAll(const BatchArgs& args, Launch&& launch) {
  const Grids grids(args.shape, args.blocks);
  constexpr uint32_t kThreads = Grids::kThreads;
  Segment* const jobs = args.jobs;
  launch(EncodeBegin, grids.blocks, 32, 0, args);
  switch (args.shape.codec) {
    case kLlfCodec:
      launch(LlfBase, grids.one, 32, 512, jobs);
      launch(LlfPlanes, grids.values, kThreads, 0, jobs);
      launch(LlfPlace, grids.one, 32, 0, jobs);
      launch(LlfEscapes, grids.values, kThreads, 0, jobs);
      break;
    case kLleCodec:
      launch(LleColumns, grids.columns, Grids::kFewThreads, Grids::kColumnShared, jobs);
      launch(LlePlace, grids.one, 32, 0, jobs);
      launch(LleRows, grids.one, kStreamsBlock, 0, jobs);
      launch(LlePack, grids.values, kThreads, 0, jobs);
      launch(PlaneDigest, grids.words, kThreads, 0, jobs, 0u);
      break;
    case kF8Codec:
      launch(F8Clear, grids.one, 32, 0, jobs);
      launch(F8Largest, grids.values, kThreads, 0, jobs);
      launch(F8Encode, grids.words, kThreads, 0, jobs);
      break;
    case kI8Codec:
      launch(I8Encode, grids.values, kThreads, 0, jobs);
      launch(I8Shown, grids.words, kThreads, 0, jobs);
      break;
    case kI8eCodec:
      launch(I8eCodes, grids.values, kThreads, 0, jobs);
      launch(I8eColumns, grids.columns, Grids::kFewThreads, Grids::kColumnShared, jobs);
      launch(I8ePlace, grids.one, 32, 0, jobs);
      launch(I8eRows, grids.one, kStreamsBlock, 0, jobs);
      launch(I8ePack, grids.values, kThreads, 0, jobs);
      launch(I8eShow, grids.words, kThreads, 0, jobs, 0u);
      break;
    case kI4hCodec:
      launch(I4hEncode, grids.vectors, Grids::kFewThreads, Grids::kVectorShared, jobs);
      launch(I4hShown, grids.words, kThreads, 0, jobs);
      break;
    case kEcCCodec:
    case kEcKCodec:
    case kEcXCodec: {
      const bool klt = args.shape.codec != kEcCCodec;
      launch(EcBegin, grids.one, 32, 0, jobs);
      if (args.shape.foretells != 0) launch(EcLevels, grids.tokens, Grids::kFewThreads, 0, jobs);
      launch(EcOrder, grids.one, 32, 0, jobs);
      launch(EcLoad, grids.values, kThreads, 0, jobs);
      if (klt) {
        launch(KltAnalyse, grids.tiles, kKltThreads, kKltShared, jobs);
      } else {
        if (!(args.shape.step > 0)) {
          launch(EccLargest, grids.values, kThreads, 0, jobs);
          launch(EccSpread, grids.columns, Grids::kFewThreads, 0, jobs);
        }
        launch(EccSteps, grids.one, 32, 0, jobs);
        launch(EccColumns, grids.columns, Grids::kFewThreads, 0, jobs);
      }
      launch(EcClasses, grids.columns, Grids::kFewThreads, Grids::kColumnShared, jobs);
      launch(EcPlace, grids.one, 32, 0, jobs);
      launch(EcRows, grids.one, kStreamsBlock, 0, jobs);
      launch(EcPack, grids.values, kThreads, 0, jobs);
      if (klt) launch(KltSynthesise, grids.tiles, kKltThreads, kKltShared, jobs);
      launch(EcShow, grids.words, kThreads, 0, jobs, 0u);
      break;
    }
    default:
      break;
  }
  launch(EncodeRaw, grids.words, kThreads, 0, jobs);
  launch(EncodePlace, grids.blocks, 32, 0, args);
  launch(EncodeCopy, grids.pieces, kThreads, 0, args);
  launch(EncodeSeal, grids.blocks, 32, 0, args);
}

// codecs: a bit a codec that the records may hold; others give a wrong digest.
template <class Launch>
void DecodeAll(const BatchArgs& args, uint32_t codecs, Launch&& launch) {
  const Grids grids(args.shape, args.blocks);
  constexpr uint32_t kThreads = Grids::kThreads;
  Segment* const jobs = args.jobs;
  const auto may = [codecs](uint32_t codec) { return (codecs >> codec & 1) != 0; };
  launch(DecodeBegin, grids.blocks, 32, 0, args);
  launch(DecodeSums, grids.pieces, kThreads, 0, jobs);
  if (may(kLlfCodec)) launch(LlfDecode, grids.values, kThreads, 0, jobs);
  if (may(kLleCodec)) {
    launch(LleOpen, grids.one, 32, 0, jobs);
    launch(LleSymbols, grids.one, kStreamsBlock, 0, jobs);
    launch(LleScan, grids.one, 32, 0, jobs);
    launch(LleJoin, grids.columns, Grids::kFewThreads, 0, jobs);
  }
  if (may(kF8Codec)) launch(F8Decode, grids.words, kThreads, 0, jobs);
  if (may(kI8Codec)) launch(I8Decode, grids.words, kThreads, 0, jobs);
  if (may(kI8eCodec)) {
    launch(I8eOpen, grids.one, 32, 0, jobs);
    launch(I8eSymbols, grids.one, kStreamsBlock, 0, jobs);
    launch(I8eScan, grids.one, 32, 0, jobs);
    launch(I8eJoin, grids.columns, Grids::kFewThreads, 0, jobs);
    launch(I8eShow, grids.words, kThreads, 0, jobs, 1u);
  }
  if (may(kI4hCodec)) launch(I4hDecode, grids.vectors, Grids::kFewThreads, Grids::kVectorShared, jobs);
  if (may(kEcCCodec) || may(kEcKCodec) || may(kEcXCodec)) {
    launch(EcOpen, grids.one, 32, 0, jobs);
    launch(EcSymbols, grids.one, kStreamsBlock, 0, jobs);
    launch(EcScan, grids.one, 32, 0, jobs);
    launch(EcJoin, grids.columns, Grids::kFewThreads, 0, jobs);
    if (may(kEcKCodec) || may(kEcXCodec)) launch(KltSynthesise, grids.tiles, kKltThreads, kKltShared, jobs);
    launch(EcShow, grids.words, kThreads, 0, jobs, 1u);
  }
  if (may(kLleCodec) || may(kI4hCodec)) launch(PlaneDigest, grids.words, kThreads, 0, jobs, 1u);
  launch(DecodeFinish, grids.blocks, 32, 0, args);
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_PIPELINE_CUH_
