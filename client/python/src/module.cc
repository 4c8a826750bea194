// The module tiercel._core: what tiercel/client.py builds on.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "client/cpp/pieces.h"
#include "client/python/src/core_client.h"
#include "kernels/artifact.h"

namespace tiercel::python {
namespace {

using Kind = CoreClient::Kind;

// Immutable, so that no Python code sees it move.
struct Finished {
  Ticket ticket = 0;
  uint32_t prefix = 0;
  bool released = true;
  std::vector<BlockResult> blocks;
};

Finished FinishedOf(Completion&& completion) {
  return {completion.ticket, completion.prefix, completion.released, std::move(completion.blocks)};
}

nb::str Text(std::string_view text) { return nb::str(text.data(), text.size()); }

TransportKind ParseTransport(const std::string& name) {
  for (const TransportKind kind : {TransportKind::kMemfd, TransportKind::kUcx, TransportKind::kGrpc}) {
    if (Name(kind) == name) return kind;
  }
  throw nb::value_error(("no transport '" + name + "': memfd, ucx or grpc").c_str());
}

std::unique_ptr<Keep> MatchKeep(const Chain& chain, double deadline_s, bool hold = false,
                                const std::string& min_class = "exact", std::optional<double> pin_s = {}) {
  auto keep = std::make_unique<Keep>();
  keep->chains.push_back(chain);
  Ask ask;
  ask.deadline_s = deadline_s;
  ask.hold = hold;
  ask.pin_s = pin_s;
  ask.min_class = min_class;
  keep->options = OptionsOf(ask);
  return keep;
}

// One Python method for each of get and put, blocking and submitted.
template <class Make>
void Def(const std::string& name, Make make) {
  make(name.c_str(), [](CoreClient& self, Kind kind, std::unique_ptr<Keep> keep) {
    return FinishedOf(self.Run(kind, std::move(keep)));
  });
  make(("submit_" + name).c_str(), [](CoreClient& self, Kind kind, std::unique_ptr<Keep> keep) {
    return self.Submit(kind, std::move(keep));
  });
}

void DefData(nb::class_<CoreClient>& type, Kind kind, const std::string& verb) {
  const auto def_pointers = [&](const char* name, auto finish) {
    type.def(
        name,
        [kind, finish](CoreClient& self, const Chain& chain, uint32_t first, uint32_t n,
                       const KvLayout& layout, const AnyArray& k, std::optional<AnyArray> v,
                       double deadline_s, const std::string& min_class, std::optional<bool> prefer_small,
                       bool no_touch, bool durable, const std::string& reuse, uint16_t layer_begin,
                       uint16_t layer_end, const std::string& put_class, const std::string& codec) {
          const Ask ask{deadline_s, min_class, prefer_small, no_touch, durable, reuse, false, put_class, codec};
          return finish(self, kind, KeepOfPointers(kind, chain, first, n, layout, k, v, ask,
                                                   layer_begin, layer_end));
        },
        nb::arg("chain"), nb::arg("first"), nb::arg("n"), nb::arg("layout"),
        nb::arg("k_ptrs").noconvert(), nb::arg("v_ptrs").noconvert() = nb::none(), nb::kw_only(),
        nb::arg("deadline_s"), nb::arg("min_class") = "exact", nb::arg("prefer_small") = nb::none(),
        nb::arg("no_touch") = false, nb::arg("durable") = false, nb::arg("reuse") = "unknown",
        nb::arg("layer_begin") = 0, nb::arg("layer_end") = 0, nb::arg("put_class") = "exact",
        nb::arg("codec") = "auto");
  };
  const auto def_pages = [&](const char* name, auto finish) {
    type.def(
        name,
        [kind, finish](CoreClient& self, const Chain& chain, uint32_t first, const KvLayout& layout,
                       const PagedKv& paged, const AnyArray& table, double deadline_s,
                       const std::string& min_class, std::optional<bool> prefer_small, bool no_touch, bool durable,
                       const std::string& reuse, uint16_t layer_begin, uint16_t layer_end,
                       const std::string& put_class, const std::string& codec) {
          const Ask ask{deadline_s, min_class, prefer_small, no_touch, durable, reuse, false, put_class, codec};
          return finish(self, kind, KeepOfPages(kind, chain, first, layout, paged, table, ask,
                                                layer_begin, layer_end));
        },
        nb::arg("chain"), nb::arg("first"), nb::arg("layout"), nb::arg("paged"),
        nb::arg("page_table").noconvert(), nb::kw_only(), nb::arg("deadline_s"),
        nb::arg("min_class") = "exact", nb::arg("prefer_small") = nb::none(), nb::arg("no_touch") = false,
        nb::arg("durable") = false, nb::arg("reuse") = "unknown", nb::arg("layer_begin") = 0,
        nb::arg("layer_end") = 0, nb::arg("put_class") = "exact", nb::arg("codec") = "auto");
  };
  const auto def_buffers = [&](const char* name, auto finish) {
    type.def(
        name,
        [kind, finish](CoreClient& self, const std::vector<Chain>& chains,
                       const nb::sequence& buffers, const KvLayout& layout, double deadline_s,
                       const std::string& min_class, bool durable, const std::string& reuse) {
          const Ask ask{deadline_s, min_class, std::nullopt, false, durable, reuse};
          return finish(self, kind, KeepOfBuffers(kind, chains, buffers, layout, ask));
        },
        nb::arg("chains"), nb::arg("buffers"), nb::arg("layout"), nb::kw_only(),
        nb::arg("deadline_s"), nb::arg("min_class") = "exact", nb::arg("durable") = false,
        nb::arg("reuse") = "unknown");
  };
  const auto def_addresses = [&](const char* name, auto finish) {
    type.def(
        name,
        [kind, finish](CoreClient& self, const std::vector<Chain>& chains, const AnyArray& ptrs,
                       const AnyArray& sizes, const KvLayout& layout, double deadline_s,
                       const std::string& min_class, bool durable, const std::string& reuse) {
          const Ask ask{deadline_s, min_class, std::nullopt, false, durable, reuse};
          return finish(self, kind, KeepOfAddresses(kind, chains, ptrs, sizes, layout, ask));
        },
        nb::arg("chains"), nb::arg("ptrs").noconvert(), nb::arg("sizes").noconvert(),
        nb::arg("layout"), nb::kw_only(), nb::arg("deadline_s"), nb::arg("min_class") = "exact",
        nb::arg("durable") = false, nb::arg("reuse") = "unknown");
  };
  Def(verb + "_blocks", def_pointers);
  Def(verb + "_pages", def_pages);
  Def(verb + "_buffers", def_buffers);
  Def(verb + "_ptrs", def_addresses);
}

// Match for the size, then the value straight into the bytes that are returned.
nb::object GetValue(CoreClient& self, const Chain& chain, double deadline_s) {
  Completion found = self.Run(Kind::kMatch, MatchKeep(chain, deadline_s));
  if (found.blocks.empty() || found.blocks[0].status != Code::kOk) {
    return nb::make_tuple(found.blocks.empty() ? BlockResult{} : found.blocks[0], nb::none());
  }
  const auto room = static_cast<Py_ssize_t>(found.blocks[0].record_bytes);
  PyObject* value = PyBytes_FromStringAndSize(nullptr, room);
  if (value == nullptr) nb::raise_python_error();
  auto keep = std::make_unique<Keep>();
  keep->chains.push_back(chain);
  Ask ask;
  ask.deadline_s = deadline_s;
  keep->options = OptionsOf(ask);
  GetSlot slot;
  slot.dst = {reinterpret_cast<std::byte*>(PyBytes_AS_STRING(value)), static_cast<size_t>(room)};
  keep->slots.push_back(slot);
  BlockResult result;
  try {
    result = self.Run(Kind::kGet, std::move(keep)).blocks.at(0);
  } catch (...) {
    Py_DECREF(value);
    throw;
  }
  if (result.status != Code::kOk) {
    Py_DECREF(value);
    return nb::make_tuple(result, nb::none());
  }
  if (_PyBytes_Resize(&value, static_cast<Py_ssize_t>(result.bytes)) != 0) nb::raise_python_error();
  return nb::make_tuple(result, nb::steal(value));
}

}  // namespace
}  // namespace tiercel::python

NB_MODULE(_core, m) {
  using namespace tiercel;          // NOLINT
  using namespace tiercel::python;  // NOLINT
  nb::exception<ClosedError>(m, "ClosedError", PyExc_RuntimeError);
  nb::exception<ConnectError>(m, "ConnectError", PyExc_ConnectionError);
  nb::exception<NotContiguousError>(m, "NotContiguous", PyExc_ValueError);
  BindLayout(m);
  BindCodec(m);

  nb::class_<BlockResult>(m, "BlockResult")
      .def_prop_ro("status", [](const BlockResult& r) { return StatusName(r); })
      .def_prop_ro("ok", [](const BlockResult& r) { return r.status == Code::kOk; })
      .def_prop_ro("reason", [](const BlockResult& r) { return Text(Name(r.reason)); })
      .def_prop_ro("tier", [](const BlockResult& r) { return Text(Name(r.tier)); })
      .def_prop_ro("quality", [](const BlockResult& r) { return Text(Name(r.quality)); })
      .def_ro("bytes", &BlockResult::bytes)
      .def_ro("record_bytes", &BlockResult::record_bytes)
      .def_ro("durable", &BlockResult::durable)
      .def_ro("artifact", &BlockResult::artifact_id)
      .def("__repr__", [](const BlockResult& r) {
        return std::string("BlockResult(status='") + StatusName(r) + "', reason='" +
               std::string(Name(r.reason)) + "', tier='" + std::string(Name(r.tier)) +
               "', bytes=" + std::to_string(r.bytes) + ")";
      });
  nb::class_<Finished>(m, "Completion")
      .def_ro("ticket", &Finished::ticket)
      .def_ro("prefix", &Finished::prefix)
      .def_ro("released", &Finished::released)
      .def_ro("blocks", &Finished::blocks);

  nb::class_<CoreClient> type(m, "Client");
  type.def(
          "__init__",
          [](CoreClient* self, const std::vector<std::string>& endpoints,
             const std::string& view_file, const std::string& name_space,
             const std::vector<std::string>& transports, const std::string& ucx_devices,
             const std::string& ucx_tls, const std::string& client_name, uint64_t staging_bytes,
             uint64_t max_bytes_in_flight, const std::string& codec, const std::string& tls_ca_file,
             const std::string& tls_cert_file, const std::string& tls_key_file, uint64_t artifact) {
            Client::Options options;
            if (artifact != 0) {
              options.artifact = FindArtifact(artifact);
              if (options.artifact == nullptr) throw nb::value_error("no artifact of that id is loaded: tiercel.codec.load_artifact");
            }
            options.endpoints = endpoints;
            options.view_file = view_file;
            options.name_space = name_space;
            for (const std::string& name : transports) {
              options.transports.push_back(ParseTransport(name));
            }
            options.ucx_devices = ucx_devices;
            options.ucx_tls = ucx_tls;
            options.client_name = client_name;
            options.staging_bytes = staging_bytes;
            options.max_bytes_in_flight = max_bytes_in_flight;
            const auto id = codec == "auto" ? CodecId::kAuto : ParseCodecId(codec);
            if (!id) throw nb::value_error(("no codec '" + codec + "'").c_str());
            options.codec = *id;
            options.tls_ca_file = tls_ca_file;
            options.tls_cert_file = tls_cert_file;
            options.tls_key_file = tls_key_file;
            new (self) CoreClient(options);
          },
          nb::kw_only(), nb::arg("endpoints"), nb::arg("view_file") = "",
          nb::arg("name_space") = "default", nb::arg("transports") = std::vector<std::string>(),
          nb::arg("ucx_devices") = "", nb::arg("ucx_tls") = "tcp", nb::arg("client_name") = "",
          nb::arg("staging_bytes") = uint64_t{128} << 20,
          nb::arg("max_bytes_in_flight") = uint64_t{512} << 20, nb::arg("codec") = "auto",
          nb::arg("tls_ca_file") = "", nb::arg("tls_cert_file") = "", nb::arg("tls_key_file") = "", nb::arg("artifact") = uint64_t{0})
      .def("close", &CoreClient::Close)
      .def_prop_ro("closed", &CoreClient::closed)
      .def(
          "match",
          [](CoreClient& self, const Chain& chain, double deadline_s, bool hold, const std::string& min_class,
             std::optional<double> pin_s) {
            return FinishedOf(self.Run(Kind::kMatch, MatchKeep(chain, deadline_s, hold, min_class, pin_s)));
          },
          nb::arg("chain"), nb::kw_only(), nb::arg("deadline_s"), nb::arg("hold") = false,
          nb::arg("min_class") = "exact", nb::arg("pin_s") = nb::none())
      .def(
          "submit_match",
          [](CoreClient& self, const Chain& chain, double deadline_s, bool hold, const std::string& min_class,
             std::optional<double> pin_s) {
            return self.Submit(Kind::kMatch, MatchKeep(chain, deadline_s, hold, min_class, pin_s));
          },
          nb::arg("chain"), nb::kw_only(), nb::arg("deadline_s"), nb::arg("hold") = false,
          nb::arg("min_class") = "exact", nb::arg("pin_s") = nb::none())
      .def("get_value", &GetValue, nb::arg("chain"), nb::kw_only(), nb::arg("deadline_s"),
           nb::sig("def get_value(self, chain: Chain, *, deadline_s: float) -> "
                   "tuple[BlockResult, bytes | None]"))
      .def(
          "poll",
          [](CoreClient& self, size_t max) {
            std::vector<Finished> out;
            for (Completion& completion : self.Poll(max)) out.push_back(FinishedOf(std::move(completion)));
            return out;
          },
          nb::arg("max") = 64)
      .def(
          "wait", [](CoreClient& self, Ticket ticket) { return FinishedOf(self.Wait(ticket)); },
          nb::arg("ticket"))
      .def("cancel", &CoreClient::Cancel, nb::arg("ticket"))
      .def("event_fd", &CoreClient::event_fd)
      .def("register_memory", &CoreClient::Register, nb::arg("address"), nb::arg("nbytes"))
      .def("unregister_memory", &CoreClient::Unregister, nb::arg("address"), nb::arg("nbytes"))
      .def("store_artifact", &CoreClient::StoreArtifact, nb::arg("artifact"), nb::arg("name_space"), nb::arg("deadline_s"))
      .def("fetch_artifact", &CoreClient::FetchArtifact, nb::arg("id"), nb::arg("name_space"), nb::arg("deadline_s"))
      .def("explain_codecs", &CoreClient::ExplainCodecs, nb::arg("scope"), nb::arg("layout"), nb::arg("worst"),
           nb::arg("blocks"),
           nb::sig("def explain_codecs(self, scope: bytes, layout: KvLayout, worst: str, blocks: int) -> list[dict[str, object]]"))
      .def("stats", &CoreClient::Stats, nb::sig("def stats(self) -> dict[str, object]"))
      .def("nodes", &CoreClient::Nodes, nb::sig("def nodes(self) -> list[dict[str, object]]"))
      .def("view", &CoreClient::View)
      .def("set_view", &CoreClient::SetView, nb::arg("json"));
  DefData(type, Kind::kGet, "get");
  DefData(type, Kind::kPut, "put");
}
