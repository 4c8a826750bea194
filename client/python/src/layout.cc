// Layouts, chains and the ways to say where blocks lie, in Python's terms.
#include <fmt/format.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/cpp/pieces.h"
#include "client/python/src/core_client.h"

namespace tiercel::python {
namespace {

template <class T, size_t kCount>
T Parse(const char* what, const std::string& name,
        const std::array<std::pair<const char*, T>, kCount>& names) {
  for (const auto& [known, value] : names) {
    if (name == known) return value;
  }
  throw nb::value_error(fmt::format("no {} '{}'", what, name).c_str());
}

template <class T, size_t kCount>
const char* Print(T value, const std::array<std::pair<const char*, T>, kCount>& names) {
  for (const auto& [known, is] : names) {
    if (value == is) return known;
  }
  return "?";
}

constexpr std::array<std::pair<const char*, Dtype>, 7> kDtypes{{{"opaque", Dtype::kOpaque},
                                                                {"bf16", Dtype::kBf16},
                                                                {"fp16", Dtype::kFp16},
                                                                {"fp32", Dtype::kFp32},
                                                                {"fp8_e4m3", Dtype::kFp8E4m3},
                                                                {"fp8_e5m2", Dtype::kFp8E5m2},
                                                                {"int8", Dtype::kInt8}}};
constexpr std::array<std::pair<const char*, AxisOrder>, 3> kOrders{
    {{"thd", AxisOrder::kTokenHeadDim},
     {"htd", AxisOrder::kHeadTokenDim},
     {"hdt", AxisOrder::kHeadDimToken}}};
constexpr std::array<std::pair<const char*, KvPacking>, 3> kPackings{
    {{"split", KvPacking::kSplit},
     {"interleaved", KvPacking::kInterleaved},
     {"latent", KvPacking::kLatent}}};

Scope ScopeOf(const nb::bytes& bytes) {
  Scope scope;
  if (bytes.size() != scope.bytes.size()) {
    throw nb::value_error(fmt::format("a scope has 16 bytes, not {}", bytes.size()).c_str());
  }
  std::memcpy(scope.bytes.data(), bytes.c_str(), scope.bytes.size());
  return scope;
}

void Require(const Status& status) {
  if (!status) Raise(status.error());
}

nb::bytes BytesOf(ByteSpan span) { return nb::bytes(span.data(), span.size()); }

// [rows, columns], C-contiguous, on the CPU, 8-byte signed integers unless `narrow`.
void CheckArray(const char* what, const AnyArray& array, size_t rows, size_t columns, bool narrow) {
  const bool one_d = columns == 0;
  if (array.device_type() != nb::device::cpu::value) {
    throw nb::type_error(fmt::format("{}: the array is not in host memory", what).c_str());
  }
  const bool wide = array.dtype() == nb::dtype<int64_t>() || array.dtype() == nb::dtype<uint64_t>();
  const bool thin = array.dtype() == nb::dtype<int32_t>() || array.dtype() == nb::dtype<uint32_t>();
  if (!wide && !(narrow && thin)) {
    throw nb::type_error(fmt::format("{}: expected int64{}", what, narrow ? " or int32" : "").c_str());
  }
  if (array.ndim() != (one_d ? 1u : 2u) || array.shape(0) != rows ||
      (!one_d && array.shape(1) != columns)) {
    throw nb::value_error(one_d ? fmt::format("{}: expected shape [{}]", what, rows).c_str()
                                : fmt::format("{}: expected shape [{}, {}]", what, rows, columns)
                                      .c_str());
  }
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != expected) {
      throw NotContiguousError(fmt::format("{}: the array is not C-contiguous", what));
    }
    expected *= static_cast<int64_t>(array.shape(i));
  }
}

std::unique_ptr<Keep> NewKeep(const Chain& chain, uint32_t first, const KvLayout& layout,
                              const Ask& ask) {
  auto keep = std::make_unique<Keep>();
  keep->chains.push_back(chain);
  keep->first = first;
  keep->layout = layout;
  keep->options = OptionsOf(ask);
  return keep;
}

void AddPaged(Keep& keep, CoreClient::Kind kind, const PagedKv& paged,
              std::span<const uint32_t> pages, uint16_t layer_begin, uint16_t layer_end) {
  if (kind == CoreClient::Kind::kGet) {
    GetSlot slot;
    slot.kind = GetSlot::Kind::kPages;
    slot.paged = &paged;
    slot.pages = pages;
    slot.layer_begin = layer_begin;
    slot.layer_end = layer_end;
    keep.slots.push_back(slot);
  } else {
    keep.sources.push_back(PutSource{PutSource::Kind::kPages, {}, &paged, pages});
  }
}

}  // namespace

std::unique_ptr<Keep> KeepOfPointers(CoreClient::Kind kind, const Chain& chain, uint32_t first,
                                     uint32_t n, const KvLayout& layout, const AnyArray& k,
                                     const std::optional<AnyArray>& v, const Ask& ask,
                                     uint16_t layer_begin, uint16_t layer_end) {
  if (layout.opaque()) throw nb::value_error("an opaque layout has no planes; use put and get");
  const bool split = layout.packing == KvPacking::kSplit;
  if (split != v.has_value()) {
    throw nb::value_error(split ? "v_ptrs: a split layout has V planes"
                                : "v_ptrs: this packing has no V planes of its own");
  }
  CheckArray("k_ptrs", k, n, layout.layers, false);
  if (split) CheckArray("v_ptrs", *v, n, layout.layers, false);
  auto keep = NewKeep(chain, first, layout, ask);
  const auto* k_at = static_cast<const uint64_t*>(k.data());
  const auto* v_at = split ? static_cast<const uint64_t*>(v->data()) : nullptr;
  const uint32_t k_dim = layout.packing == KvPacking::kInterleaved
                             ? layout.head_dim_k + layout.head_dim_v
                             : layout.head_dim_k;
  keep->pages.assign(1, 0);
  keep->paged.resize(n);
  const auto plane = [&](uint64_t address, AxisOrder order, uint32_t dim) {
    return PagedKv::Dense(reinterpret_cast<std::byte*>(address), layout, order, dim, 1,
                          layout.tokens_per_block);
  };
  for (size_t i = 0; i < n; ++i) {
    PagedKv& paged = keep->paged[i];
    paged.n_pages = 1;
    paged.tokens_per_page = layout.tokens_per_block;
    paged.k.reserve(layout.layers);
    for (size_t l = 0; l < layout.layers; ++l) {
      paged.k.push_back(plane(k_at[i * layout.layers + l], layout.k_order, k_dim));
      if (split) {
        paged.v.push_back(plane(v_at[i * layout.layers + l], layout.v_order, layout.head_dim_v));
      }
    }
    AddPaged(*keep, kind, paged, keep->pages, layer_begin, layer_end);
  }
  return keep;
}

std::unique_ptr<Keep> KeepOfPages(CoreClient::Kind kind, const Chain& chain, uint32_t first,
                                  const KvLayout& layout, const PagedKv& paged,
                                  const AnyArray& table, const Ask& ask, uint16_t layer_begin,
                                  uint16_t layer_end) {
  if (table.ndim() != 2) throw nb::value_error("page_table: expected shape [blocks, pages]");
  const size_t n = table.shape(0);
  const size_t per_block = table.shape(1);
  CheckArray("page_table", table, n, per_block, true);
  auto keep = NewKeep(chain, first, layout, ask);
  keep->paged.push_back(paged);
  keep->pages.resize(n * per_block);
  const bool wide = table.itemsize() == 8;
  for (size_t i = 0; i < keep->pages.size(); ++i) {
    const int64_t page = wide ? static_cast<const int64_t*>(table.data())[i]
                              : static_cast<const int32_t*>(table.data())[i];
    if (page < 0 || page >= paged.n_pages) {
      throw nb::value_error(fmt::format("page_table: page {} of {}", page, paged.n_pages).c_str());
    }
    keep->pages[i] = static_cast<uint32_t>(page);
  }
  for (size_t i = 0; i < n; ++i) {
    AddPaged(*keep, kind, keep->paged[0],
             std::span<const uint32_t>(keep->pages).subspan(i * per_block, per_block), layer_begin,
             layer_end);
  }
  return keep;
}

namespace {

std::unique_ptr<Keep> NewMany(const std::vector<Chain>& chains, const KvLayout& layout,
                              const Ask& ask) {
  if (chains.empty()) throw nb::value_error("no keys");
  auto keep = std::make_unique<Keep>();
  keep->chains = chains;
  keep->many = chains.size() > 1;
  keep->layout = layout;
  keep->options = OptionsOf(ask);
  return keep;
}

void AddBytes(Keep& keep, CoreClient::Kind kind, MutableByteSpan bytes) {
  if (bytes.empty()) throw nb::value_error("a value has at least one byte");
  if (kind == CoreClient::Kind::kGet) {
    GetSlot slot;
    slot.dst = bytes;
    keep.slots.push_back(slot);
  } else {
    keep.sources.push_back(PutSource{PutSource::Kind::kBlock, bytes, nullptr, {}});
  }
}

}  // namespace

std::unique_ptr<Keep> KeepOfBuffers(CoreClient::Kind kind, const std::vector<Chain>& chains,
                                    const nb::sequence& buffers, const KvLayout& layout,
                                    const Ask& ask) {
  auto keep = NewMany(chains, layout, ask);
  if (nb::len(buffers) != chains.size()) {
    throw nb::value_error(
        fmt::format("{} buffers for {} keys", nb::len(buffers), chains.size()).c_str());
  }
  keep->buffers.reserve(chains.size());
  for (nb::handle buffer : buffers) {
    keep->buffers.emplace_back(buffer, kind == CoreClient::Kind::kGet);
    AddBytes(*keep, kind, keep->buffers.back().span());
  }
  return keep;
}

std::unique_ptr<Keep> KeepOfAddresses(CoreClient::Kind kind, const std::vector<Chain>& chains,
                                      const AnyArray& addresses, const AnyArray& sizes,
                                      const KvLayout& layout, const Ask& ask) {
  auto keep = NewMany(chains, layout, ask);
  CheckArray("ptrs", addresses, chains.size(), 0, false);
  CheckArray("sizes", sizes, chains.size(), 0, false);
  const auto* at = static_cast<const uint64_t*>(addresses.data());
  const auto* size = static_cast<const uint64_t*>(sizes.data());
  for (size_t i = 0; i < chains.size(); ++i) {
    if (at[i] == 0) throw nb::value_error(fmt::format("ptrs[{}] is null", i).c_str());
    AddBytes(*keep, kind, {reinterpret_cast<std::byte*>(at[i]), size[i]});
  }
  return keep;
}

void BindLayout(nb::module_& m) {
  nb::class_<KvLayout>(m, "KvLayout")
      .def(
          "__init__",
          [](KvLayout* self, uint32_t layers, uint32_t kv_heads, uint32_t head_dim,
             uint32_t tokens_per_block, std::optional<uint32_t> head_dim_v, const std::string& dtype,
             const std::string& k_order, const std::string& v_order, const std::string& packing,
             uint32_t rank, uint32_t world, const std::string& engine, const std::string& isa) {
            KvLayout layout;
            layout.layers = layers;
            layout.kv_heads = kv_heads;
            layout.head_dim_k = head_dim;
            layout.packing = Parse("packing", packing, kPackings);
            layout.head_dim_v =
                head_dim_v.value_or(layout.packing == KvPacking::kLatent ? 0 : head_dim);
            layout.tokens_per_block = tokens_per_block;
            layout.dtype = Parse("dtype", dtype, kDtypes);
            layout.k_order = Parse("k_order", k_order, kOrders);
            layout.v_order = Parse("v_order", v_order, kOrders);
            layout.rank = rank;
            layout.world = world;
            layout.engine = engine;
            layout.isa = isa;
            if (layout.opaque()) throw nb::value_error("dtype: use KvLayout.opaque()");
            Require(Validate(layout));
            new (self) KvLayout(std::move(layout));
          },
          nb::kw_only(), nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"),
          nb::arg("tokens_per_block"), nb::arg("head_dim_v") = nb::none(), nb::arg("dtype") = "bf16",
          nb::arg("k_order") = "thd", nb::arg("v_order") = "thd", nb::arg("packing") = "split",
          nb::arg("rank") = 0, nb::arg("world") = 1, nb::arg("engine") = "", nb::arg("isa") = "")
      .def_static("opaque", [] { return KvLayout::Opaque(); })
      .def_prop_ro("is_opaque", &KvLayout::opaque)
      .def_prop_ro("block_bytes", &KvLayout::block_bytes)
      .def_prop_ro("k_plane_bytes", &KvLayout::k_plane_bytes)
      .def_prop_ro("v_plane_bytes", &KvLayout::v_plane_bytes)
      .def_ro("layers", &KvLayout::layers)
      .def_ro("kv_heads", &KvLayout::kv_heads)
      .def_ro("head_dim", &KvLayout::head_dim_k)
      .def_ro("head_dim_v", &KvLayout::head_dim_v)
      .def_ro("tokens_per_block", &KvLayout::tokens_per_block)
      .def_ro("rank", &KvLayout::rank)
      .def_ro("world", &KvLayout::world)
      .def_ro("engine", &KvLayout::engine)
      .def_ro("isa", &KvLayout::isa)
      .def_prop_ro("dtype", [](const KvLayout& l) { return Print(l.dtype, kDtypes); })
      .def_prop_ro("k_order", [](const KvLayout& l) { return Print(l.k_order, kOrders); })
      .def_prop_ro("v_order", [](const KvLayout& l) { return Print(l.v_order, kOrders); })
      .def_prop_ro("packing", [](const KvLayout& l) { return Print(l.packing, kPackings); })
      .def("__eq__",
           [](const KvLayout& a, nb::handle b) {
             const KvLayout* other = nullptr;
             return nb::try_cast(b, other) && other != nullptr && a == *other;
           },
           nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def("__hash__",
           [](const KvLayout& l) {
             return std::hash<std::string>()(fmt::format(
                 "{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}", l.layers, l.kv_heads, l.head_dim_k,
                 l.head_dim_v, l.tokens_per_block, static_cast<int>(l.dtype),
                 static_cast<int>(l.k_order), static_cast<int>(l.v_order),
                 static_cast<int>(l.packing), l.rank, l.world, l.engine, l.isa));
           })
      .def("__repr__", [](const KvLayout& l) {
        if (l.opaque()) return std::string("KvLayout.opaque()");
        return fmt::format("KvLayout(layers={}, kv_heads={}, head_dim={}, head_dim_v={}, "
                           "tokens_per_block={}, dtype='{}')",
                           l.layers, l.kv_heads, l.head_dim_k, l.head_dim_v, l.tokens_per_block,
                           Print(l.dtype, kDtypes));
      });

  m.def(
      "make_scope",
      [](const std::string& model, const std::string& revision,
         const std::vector<std::string>& adapters, const std::string& rope, const std::string& salt,
         const KvLayout* layout) {
        ScopeFields fields{model, revision, adapters, rope, salt,
                           layout == nullptr ? KvLayout::Opaque() : *layout};
        const Result<Scope> scope = MakeScope(fields);
        if (!scope) Raise(scope.error());
        return BytesOf(scope->bytes);
      },
      nb::kw_only(), nb::arg("model"), nb::arg("revision") = "",
      nb::arg("adapters") = std::vector<std::string>(), nb::arg("rope") = "", nb::arg("salt") = "",
      nb::arg("layout") = nb::none());

  nb::class_<Chain>(m, "Chain")
      .def(
          "__init__",
          [](Chain* self, const nb::bytes& scope, const std::string& name_space, uint32_t part,
             const std::string& lineage, bool allow_short_hashes,
             const std::optional<KvLayout>& layout, uint64_t value_bytes) {
            Chain::Options options;
            options.name_space = name_space;
            options.scope = ScopeOf(scope);
            options.part = part;
            const auto quality = ParseQualityClass(lineage);
            if (!quality) throw nb::value_error(("no quality class '" + lineage + "'").c_str());
            options.lineage = *quality;
            options.allow_short_hashes = allow_short_hashes;
            options.pieces = PiecesOf(layout ? *layout : KvLayout::Opaque(), value_bytes).count;
            new (self) Chain(std::move(options));
          },
          nb::arg("scope"), nb::kw_only(), nb::arg("name_space") = "default", nb::arg("part") = 0,
          nb::arg("lineage") = "exact", nb::arg("allow_short_hashes") = false,
          nb::arg("layout") = nb::none(), nb::arg("value_bytes") = 0)
      .def(
          "append",
          [](Chain& self, const nb::bytes& hash) {
            Require(self.Append({static_cast<const std::byte*>(hash.data()), hash.size()}));
          },
          nb::arg("hash"))
      .def(
          "extend",
          [](Chain& self, const nb::iterable& hashes) {
            for (nb::handle hash : hashes) {
              if (!PyBytes_Check(hash.ptr())) throw nb::type_error("a hash is bytes");
              const nb::bytes bytes = nb::borrow<nb::bytes>(hash);
              Require(self.Append({static_cast<const std::byte*>(bytes.data()), bytes.size()}));
            }
          },
          nb::arg("hashes"), nb::sig("def extend(self, hashes: collections.abc.Iterable[bytes]) -> None"))
      .def("__len__", &Chain::size)
      .def(
          "key",
          [](const Chain& self, uint32_t i) {
            if (i >= self.size()) throw nb::index_error("chain: no such block");
            return BytesOf(self.key(i).bytes);
          },
          nb::arg("i"))
      .def(
          "anchor",
          [](const Chain& self, uint32_t i) {
            if (i >= self.size()) throw nb::index_error("chain: no such block");
            return BytesOf(self.anchor(i).bytes);
          },
          nb::arg("i"))
      .def_prop_ro("scope", [](const Chain& c) { return BytesOf(c.options().scope.bytes); })
      .def_prop_ro("name_space", [](const Chain& c) { return c.options().name_space; })
      .def_prop_ro("part", [](const Chain& c) { return c.options().part; });

  // strides: (page, token, head, dim) in bytes.
  using Strides = std::vector<uint64_t>;
  nb::class_<PagedKv>(m, "PagedKv")
      .def(
          "__init__",
          [](PagedKv* self, uint32_t n_pages, uint32_t tokens_per_page,
             const std::vector<uint64_t>& k, const std::vector<uint64_t>& v, uint64_t plane_bytes,
             const Strides& k_strides, const Strides& v_strides) {
            const auto planes = [&](const char* what, const std::vector<uint64_t>& bases,
                                    const Strides& strides) {
              if (strides.size() != 4) {
                throw nb::value_error(
                    fmt::format("{}: expected (page, token, head, dim) in bytes", what).c_str());
              }
              std::vector<PagedPlane> out;
              for (const uint64_t base : bases) {
                out.push_back({reinterpret_cast<std::byte*>(base), plane_bytes, strides[0],
                               strides[1], strides[2], strides[3]});
              }
              return out;
            };
            PagedKv paged;
            paged.n_pages = n_pages;
            paged.tokens_per_page = tokens_per_page;
            paged.k = planes("k_strides", k, k_strides);
            paged.v = planes("v_strides", v, v_strides.empty() ? k_strides : v_strides);
            new (self) PagedKv(std::move(paged));
          },
          nb::kw_only(), nb::arg("n_pages"), nb::arg("tokens_per_page"), nb::arg("k"),
          nb::arg("v") = std::vector<uint64_t>(), nb::arg("plane_bytes"), nb::arg("k_strides"),
          nb::arg("v_strides") = Strides())
      .def_ro("n_pages", &PagedKv::n_pages)
      .def_ro("tokens_per_page", &PagedKv::tokens_per_page);
}

}  // namespace tiercel::python
