#include "client/cpp/codec_controller.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/units.h"

namespace tiercel {
namespace {

Scope ScopeOf(uint8_t n) {
  Scope scope;
  scope.bytes[0] = static_cast<std::byte>(n);
  return scope;
}

CodecController::Ask AskFor(QualityClass worst, bool artifact = false) {
  CodecController::Ask ask;
  ask.scope = ScopeOf(1);
  ask.dtype = Dtype::kBf16;
  ask.worst = worst;
  ask.artifact = artifact;
  ask.link = TransportKind::kGrpc;
  ask.raw_bytes = 4 * kMiB;
  ask.blocks = 8;
  return ask;
}

CodecController::Options NeverExplore() {
  CodecController::Options options;
  options.explore_every = 0;
  return options;
}

// A link that takes so many nanoseconds a byte.
void TellLink(CodecController& controller, double nanos) {
  for (int i = 0; i < 200; ++i) controller.Carried(TransportKind::kGrpc, kMiB, static_cast<Nanos>(nanos * kMiB));
}

TEST(CodecControllerTest, ASlowLinkWantsFewBytesAndAFastOneFastCodecs) {
  CodecController::Options free_bytes = NeverExplore();
  free_bytes.stored_byte_nanos = 0;
  CodecController controller(free_bytes);
  TellLink(controller, 10);
  EXPECT_EQ(controller.ChoosePut(AskFor(QualityClass::kExact)).codec, CodecId::kLle);
  EXPECT_EQ(controller.ChoosePut(AskFor(QualityClass::kBalanced, true)).codec, CodecId::kEcX);
  EXPECT_EQ(controller.ChoosePut(AskFor(QualityClass::kBalanced, false)).codec, CodecId::kEcC);
  TellLink(controller, 0.02);
  EXPECT_EQ(controller.ChoosePut(AskFor(QualityClass::kExact)).codec, CodecId::kRaw);
}

TEST(CodecControllerTest, TheTableForeseesWhatAnArtifactsLevelsSave) {
  const CodecController controller(NeverExplore());
  const auto ratio = [&](CodecId codec, bool artifact) {
    const auto ask = AskFor(QualityClass::kBalanced, artifact);
    for (const auto& one : controller.Explain(ask)) {
      if (one.codec == codec && one.quality == QualityClass::kBalanced) return one.record_bytes / static_cast<double>(ask.raw_bytes);
    }
    return -1.0;
  };
  EXPECT_NEAR(ratio(CodecId::kEcX, true), 1.52 / 16, 0.006);  // Bits of docs/reports/quality-smollm2.txt at 3 times fp8's KL.
  EXPECT_NEAR(ratio(CodecId::kEcK, true), 1.77 / 16, 0.006);
  EXPECT_NEAR(ratio(CodecId::kEcC, true), 2.39 / 16, 0.006);
  EXPECT_NEAR(ratio(CodecId::kEcC, false), 3.2 / 16, 0.006);
  EXPECT_EQ(ratio(CodecId::kEcX, false), -1.0);
}

TEST(CodecControllerTest, WhatIsMeasuredReplacesTheTable) {
  CodecController controller(NeverExplore());
  TellLink(controller, 10);
  ASSERT_EQ(controller.ChoosePut(AskFor(QualityClass::kExact)).codec, CodecId::kLle);
  for (int i = 0; i < 20; ++i) {  // This model's exponents are noise: nothing is gained.
    controller.Encoded(ScopeOf(1), CodecId::kLle, QualityClass::kExact, kMiB, kMiB, kMillisecond);
  }
  EXPECT_NE(controller.ChoosePut(AskFor(QualityClass::kExact)).codec, CodecId::kLle);
  auto other = AskFor(QualityClass::kExact);
  other.scope = ScopeOf(2);
  EXPECT_EQ(controller.ChoosePut(other).codec, CodecId::kLle) << "another model is another matter";
}

TEST(CodecControllerTest, NeverPicksAWorseClassThanAllowedNorACodecWithoutItsArtifact) {
  CodecController::Options options;
  options.explore_every = 2;
  CodecController controller(options);
  TellLink(controller, 10);
  for (const QualityClass worst : {QualityClass::kExact, QualityClass::kNear, QualityClass::kHigh, QualityClass::kBalanced,
                                   QualityClass::kSmall}) {
    for (int i = 0; i < 200; ++i) {
      const auto choice = controller.ChoosePut(AskFor(worst, false));
      EXPECT_LE(choice.quality, worst);
      EXPECT_LE(FindCodec(choice.codec)->quality(), worst);
      EXPECT_FALSE(FindCodec(choice.codec)->needs_artifact());
    }
    for (const auto& one : controller.Explain(AskFor(worst, true))) EXPECT_LE(one.quality, worst);
  }
  auto opaque = AskFor(QualityClass::kSmall, true);
  opaque.dtype = Dtype::kOpaque;
  for (int i = 0; i < 50; ++i) EXPECT_EQ(controller.ChoosePut(opaque).codec, CodecId::kRaw);
}

TEST(CodecControllerTest, TriesWhatItHasNotMeasuredNowAndThen) {
  CodecController::Options options;
  options.explore_every = 10;
  CodecController controller(options);
  TellLink(controller, 1);
  std::map<CodecId, int> picked;
  int explored = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto choice = controller.ChoosePut(AskFor(QualityClass::kExact));
    ++picked[choice.codec];
    explored += choice.exploring ? 1 : 0;
  }
  EXPECT_EQ(picked.size(), 3u) << "RAW, LLF and LLE are all near enough to be tried";
  EXPECT_LE(explored, 100);
  EXPECT_GE(explored, 50);
}

TEST(CodecControllerTest, AnExplanationIsOrderedAndSumsUp) {
  CodecController controller(NeverExplore());
  TellLink(controller, 1);
  const auto ask = AskFor(QualityClass::kSmall, true);
  const auto candidates = controller.Explain(ask);
  ASSERT_EQ(candidates.size(), 10u);
  for (size_t i = 1; i < candidates.size(); ++i) EXPECT_LE(candidates[i - 1].total, candidates[i].total);
  for (const auto& one : candidates) {
    const double put = (7 * std::max(one.encode, one.send) + one.encode + one.send) / 8;
    const double get = (7 * std::max(one.receive, one.decode) + one.receive + one.decode) / 8;
    EXPECT_NEAR(one.total, put + get + one.storage, 1e-6 * one.total) << Name(one.codec);
  }
  EXPECT_EQ(candidates.front().codec, controller.ChoosePut(ask).codec);
}

TEST(CodecControllerTest, ReadsTheSmallOneWhereThatIsSooner) {
  CodecController controller(NeverExplore());
  TellLink(controller, 10);
  EXPECT_EQ(controller.ChooseGet(AskFor(QualityClass::kExact)), Prefer::kGood);
  EXPECT_EQ(controller.ChooseGet(AskFor(QualityClass::kBalanced, true)), Prefer::kSmall);
  TellLink(controller, 0.02);
  for (int i = 0; i < 20; ++i) {
    controller.Decoded(ScopeOf(1), CodecId::kRaw, QualityClass::kExact, kMiB, kMiB, 100 * kMicrosecond);
    controller.Decoded(ScopeOf(1), CodecId::kEcX, QualityClass::kBalanced, kMiB, kMiB / 8, 900 * kMicrosecond);
  }
  EXPECT_EQ(controller.ChooseGet(AskFor(QualityClass::kBalanced, true)), Prefer::kGood);
}

TEST(CodecControllerTest, RemembersABoundedNumberOfModels) {
  CodecController controller(NeverExplore());
  for (uint8_t n = 0; n < 40; ++n) {
    controller.Encoded(ScopeOf(n), CodecId::kLlf, QualityClass::kExact, kMiB, kMiB / 2, kMillisecond);
  }
  const auto measured = [&](uint8_t n) {
    auto ask = AskFor(QualityClass::kExact);
    ask.scope = ScopeOf(n);
    uint32_t most = 0;
    for (const auto& one : controller.Explain(ask)) most = std::max(most, one.measured);
    return most;
  };
  EXPECT_EQ(measured(39), 1u);
  EXPECT_EQ(measured(0), 0u);
}

}  // namespace
}  // namespace tiercel
