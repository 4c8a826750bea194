#include "tests/conformance/transport_conformance.h"
#include "transport/factory.h"

namespace tiercel {
namespace {

class UcxRig final : public TransportRig {
 public:
  std::unique_ptr<Transport> MakeServer(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return Make(sink, clock, limits, true);
  }
  std::unique_ptr<Transport> MakeClient(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return Make(sink, clock, limits, false);
  }

 private:
  static std::unique_ptr<Transport> Make(FrameSink& sink, const Clock& clock,
                                         const Transport::Limits& limits, bool server) {
    UcxOptions options;
    options.devices = "lo";
    options.server = server;
    options.limits = limits;
    auto made = MakeUcxTransport(options, sink, clock);
    EXPECT_TRUE(made) << made.error().message;
    return made ? std::move(*made) : nullptr;
  }
};

INSTANTIATE_TEST_SUITE_P(Ucx, TransportConformance,
                         ::testing::Values(TransportCase{
                             "tcp_lo", [] { return std::make_unique<UcxRig>(); }}),
                         [](const auto& tested) { return tested.param.name; });

TEST(UcxTransport, DevicesMustBeNamedAndExist) {
  RecordingSink sink;
  UcxOptions options;
  auto made = MakeUcxTransport(options, sink, Clock::Monotonic());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Code::kInvalidArgument);
  options.devices = "nosuchdevice0";
  made = MakeUcxTransport(options, sink, Clock::Monotonic());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Code::kUnavailable);
  EXPECT_NE(made.error().message.find("nosuchdevice0"), std::string::npos);
}

}  // namespace
}  // namespace tiercel
