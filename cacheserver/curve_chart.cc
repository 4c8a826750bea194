#include "cacheserver/curve_chart.h"

#include <fmt/format.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/check.h"

namespace tiercel {
namespace {

constexpr std::string_view kLetters = "abcdefghijkl";
static_assert(kLetters.size() == CurveChart::kMaxCurves);

// Where a size lies between the least, 0, and the most, 1.
double Along(const CurveChart& chart, double size) {
  const double least = std::log(chart.sizes.front());
  const double most = std::log(chart.sizes.back());
  return most > least ? (std::log(size) - least) / (most - least) : 0.5;
}

// The upper end of the ratios' axis: a whole number of tenths.
double Top(const CurveChart& chart) {
  double top = 0.1;
  for (const CurveChart::Curve& curve : chart.curves) {
    for (const double ratio : curve.ratios) top = std::max(top, ratio);
  }
  return std::min(1.0, std::ceil(top * 10 - 1e-9) / 10);
}

void CheckChart(const CurveChart& chart) {
  TIERCEL_CHECK(!chart.sizes.empty() && chart.sizes.front() > 0);
  TIERCEL_CHECK(chart.curves.size() <= CurveChart::kMaxCurves);
  for (const CurveChart::Curve& curve : chart.curves) {
    TIERCEL_CHECK(curve.ratios.size() == chart.sizes.size());
  }
}

// ---- the picture -------------------------------------------------------------------------------

// Letters of 5 x 7 pixels, bit 5 * row + column; small letters are drawn as large ones.
struct Glyph {
  char letter;
  uint64_t bits;
};
constexpr Glyph kGlyphs[] = {
    {'%', 0x672222273}, {'(', 0x208210888}, {')', 0x088842082}, {'+', 0x0084f9080},
    {',', 0x088600000}, {'-', 0x0000f8000}, {'.', 0x18c000000}, {'/', 0x042222210},
    {'0', 0x3a33ae62e}, {'1', 0x3884210c4}, {'2', 0x7c226422e}, {'3', 0x3a306422e},
    {'4', 0x211f4a988}, {'5', 0x3a3083c3f}, {'6', 0x3a317842e}, {'7', 0x08442221f},
    {'8', 0x3a317462e}, {'9', 0x3a10f462e}, {':', 0x00c6018c0}, {'A', 0x4631fc62e},
    {'B', 0x3e317c62f}, {'C', 0x3a210862e}, {'D', 0x3e318c62f}, {'E', 0x7c217843f},
    {'F', 0x04217843f}, {'G', 0x3a31e862e}, {'H', 0x4631fc631}, {'I', 0x38842108e},
    {'J', 0x19284211c}, {'K', 0x452519531}, {'L', 0x7c2108421}, {'M', 0x4631ad771},
    {'N', 0x4639ad671}, {'O', 0x3a318c62e}, {'P', 0x04217c62f}, {'Q', 0x59358c62e},
    {'R', 0x45257c62f}, {'S', 0x3e107043e}, {'T', 0x10842109f}, {'U', 0x3a318c631},
    {'V', 0x114a8c631}, {'W', 0x4775ac631}, {'X', 0x462a22a31}, {'Y', 0x108422a31},
    {'Z', 0x7c222221f}, {'_', 0x7c0000000},
};
constexpr int kGlyphWide = 5;
constexpr int kGlyphHigh = 7;
constexpr int kScale = 2;
constexpr int kStep = (kGlyphWide + 1) * kScale;  // From one letter to the next.

struct Color {
  uint8_t red, green, blue;
};
constexpr Color kBlack = {0, 0, 0};
constexpr Color kGrid = {222, 222, 222};
constexpr std::array<Color, CurveChart::kMaxCurves> kColors = {{{31, 119, 180},
                                                                {255, 127, 14},
                                                                {44, 160, 44},
                                                                {214, 39, 40},
                                                                {148, 103, 189},
                                                                {140, 86, 75},
                                                                {227, 119, 194},
                                                                {127, 127, 127},
                                                                {188, 189, 34},
                                                                {23, 190, 207},
                                                                {0, 0, 128},
                                                                {0, 0, 0}}};

constexpr int kWide = 960;
constexpr int kHigh = 640;
constexpr int kLeft = 90;
constexpr int kRight = kWide - 210;
constexpr int kUpper = 50;
constexpr int kLower = kHigh - 80;

class Canvas {
 public:
  Canvas() : pixels_(size_t{kWide} * kHigh * 3, 255) {}

  void Dot(int x, int y, Color color) {
    if (x < 0 || y < 0 || x >= kWide || y >= kHigh) return;
    uint8_t* at = pixels_.data() + 3 * (static_cast<size_t>(y) * kWide + static_cast<size_t>(x));
    at[0] = color.red;
    at[1] = color.green;
    at[2] = color.blue;
  }
  void Box(int x, int y, int wide, int high, Color color) {
    for (int i = 0; i < high; ++i) {
      for (int j = 0; j < wide; ++j) Dot(x + j, y + i, color);
    }
  }
  void Line(int x0, int y0, int x1, int y1, int thick, Color color) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= steps; ++i) {
      Box(x0 + (x1 - x0) * i / steps - thick / 2, y0 + (y1 - y0) * i / steps - thick / 2, thick,
          thick, color);
    }
  }
  void Text(int x, int y, std::string_view text, Color color) {
    for (const char c : text) {
      const char letter = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
      const auto* glyph = std::find_if(std::begin(kGlyphs), std::end(kGlyphs),
                                       [letter](const Glyph& g) { return g.letter == letter; });
      for (int bit = 0; glyph != std::end(kGlyphs) && bit < kGlyphWide * kGlyphHigh; ++bit) {
        if ((glyph->bits >> bit & 1) == 0) continue;
        Box(x + bit % kGlyphWide * kScale, y + bit / kGlyphWide * kScale, kScale, kScale, color);
      }
      x += kStep;
    }
  }
  void TextAround(int x, int y, std::string_view text, Color color) {
    Text(x - static_cast<int>(text.size()) * kStep / 2, y, text, color);
  }
  const uint8_t* pixels() const { return pixels_.data(); }

 private:
  std::vector<uint8_t> pixels_;  // Red, green, blue, row by row.
};

void Draw(const CurveChart& chart, Canvas& canvas) {
  const double top = Top(chart);
  const auto x_of = [&](double size) {
    return kLeft + static_cast<int>(std::lround(Along(chart, size) * (kRight - kLeft)));
  };
  const auto y_of = [&](double ratio) {
    return kLower - static_cast<int>(std::lround(ratio / top * (kLower - kUpper)));
  };
  canvas.TextAround(kWide / 2, 16, chart.title.substr(0, kWide / kStep), kBlack);
  for (int tenth = 0; tenth <= static_cast<int>(std::lround(top * 10)); ++tenth) {
    const int y = y_of(tenth / 10.0);
    canvas.Line(kLeft, y, kRight, y, 1, kGrid);
    canvas.Text(kLeft - 10 - 3 * kStep, y - kGlyphHigh, fmt::format("{:.1f}", tenth / 10.0),
                kBlack);
  }
  int free_from = 0;  // Where the last size's label ends.
  for (const double size : chart.sizes) {
    const int x = x_of(size);
    canvas.Line(x, kUpper, x, kLower, 1, kGrid);
    const std::string label = fmt::format("{:g}", size);
    const int half = static_cast<int>(label.size()) * kStep / 2;
    if (x - half < free_from) continue;
    canvas.TextAround(x, kLower + 12, label, kBlack);
    free_from = x + half + kStep;
  }
  canvas.Line(kLeft, kUpper, kLeft, kLower, 2, kBlack);
  canvas.Line(kLeft, kLower, kRight, kLower, 2, kBlack);
  canvas.TextAround((kLeft + kRight) / 2, kLower + 44, chart.x_label, kBlack);
  canvas.Text(10, kUpper - 30, "hit ratio", kBlack);
  for (size_t c = 0; c < chart.curves.size(); ++c) {
    const CurveChart::Curve& curve = chart.curves[c];
    for (size_t i = 0; i < chart.sizes.size(); ++i) {
      const int x = x_of(chart.sizes[i]);
      const int y = y_of(curve.ratios[i]);
      canvas.Box(x - 3, y - 3, 7, 7, kColors[c]);
      if (i == 0) continue;
      canvas.Line(x_of(chart.sizes[i - 1]), y_of(curve.ratios[i - 1]), x, y, 2, kColors[c]);
    }
    const int y = kUpper + 24 * static_cast<int>(c);
    canvas.Box(kRight + 20, y + 4, 24, 4, kColors[c]);
    canvas.Text(kRight + 52, y, std::string_view(curve.name).substr(0, 12), kBlack);
  }
}

}  // namespace

std::string DrawText(const CurveChart& chart) {
  CheckChart(chart);
  constexpr size_t kColumns = 60;
  constexpr size_t kRows = 20;
  const double top = Top(chart);
  const auto column = [&](double size) {
    return static_cast<size_t>(std::lround(Along(chart, size) * (kColumns - 1)));
  };
  std::vector<std::string> rows(kRows + 1, std::string(kColumns, ' '));
  for (size_t c = 0; c < chart.curves.size(); ++c) {
    for (size_t i = 0; i < chart.sizes.size(); ++i) {
      const double up = std::clamp(chart.curves[c].ratios[i] / top, 0.0, 1.0);
      char& at = rows[kRows - static_cast<size_t>(std::lround(up * kRows))][column(chart.sizes[i])];
      at = at == ' ' ? kLetters[c] : '*';
    }
  }
  std::string text;
  for (size_t r = 0; r <= kRows; ++r) {
    const double ratio = top * static_cast<double>(kRows - r) / kRows;
    text += r % 4 == 0 ? fmt::format("{:5.2f} |", ratio) : "      |";
    text += rows[r].substr(0, rows[r].find_last_not_of(' ') + 1) + "\n";
  }
  text += "      +" + std::string(kColumns, '-') + "\n";
  std::string labels(kColumns + 8, ' ');
  size_t free_from = 0;
  for (const double size : chart.sizes) {
    const std::string label = fmt::format("{:g}", size);
    const size_t at = column(size);
    if (at < free_from || at + label.size() > labels.size()) continue;
    labels.replace(at, label.size(), label);
    free_from = at + label.size() + 1;
  }
  text += "       " + labels.substr(0, labels.find_last_not_of(' ') + 1) + "  " + chart.x_label;
  for (size_t c = 0; c < chart.curves.size(); ++c) {
    text +=
        fmt::format("{}{} {}", c % 6 == 0 ? "\n       " : "   ", kLetters[c], chart.curves[c].name);
  }
  return text + "   (*: several)\n";
}

Status WritePng(const CurveChart& chart, const std::string& path) {
  CheckChart(chart);
  Canvas canvas;
  Draw(chart, canvas);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = kWide;
  image.height = kHigh;
  image.format = PNG_FORMAT_RGB;
  if (png_image_write_to_file(&image, path.c_str(), 0, canvas.pixels(), 0, nullptr) == 0)
    return Fail(Code::kUnavailable, fmt::format("{}: {}", path, image.message));
  return OkStatus();
}

}  // namespace tiercel
