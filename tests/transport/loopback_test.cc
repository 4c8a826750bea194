#include "tests/conformance/transport_conformance.h"
#include "transport/loopback.h"

namespace tiercel {
namespace {

class LoopbackRig final : public TransportRig {
 public:
  std::unique_ptr<Transport> MakeServer(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return network_.MakeTransport(sink, clock, limits);
  }
  std::unique_ptr<Transport> MakeClient(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return network_.MakeTransport(sink, clock, limits);
  }

 private:
  LoopbackNetwork network_;
};

INSTANTIATE_TEST_SUITE_P(Loopback, TransportConformance,
                         ::testing::Values(TransportCase{
                             "loopback", [] { return std::make_unique<LoopbackRig>(); }}),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace tiercel
