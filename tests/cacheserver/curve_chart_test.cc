#include "cacheserver/curve_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <cstdlib>
#include <filesystem>

namespace tiercel {
namespace {

using ::testing::HasSubstr;

CurveChart Two() {
  return {"a title", "size, %", {1, 10, 100}, {{"low", {0.0, 0.1, 0.2}}, {"high", {0.4, 0.5, 0.7}}}};
}

std::string Folder() {
  std::string pattern = std::filesystem::temp_directory_path() / "curve-chart-XXXXXX";
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  return pattern;
}

// Pixels of this colour in the file; -1: it is no picture.
int Count(const std::string& path, int red, int green, int blue) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path.c_str()) == 0) return -1;
  image.format = PNG_FORMAT_RGB;
  std::vector<png_byte> pixels(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) == 0) return -1;
  int n = 0;
  for (size_t i = 0; i < pixels.size(); i += 3) n += pixels[i] == red && pixels[i + 1] == green && pixels[i + 2] == blue;
  return n;
}

TEST(CurveChartTest, TextHasEveryCurveItsLegendAndTheAxes) {
  const std::string text = DrawText(Two());
  EXPECT_THAT(text, HasSubstr("a low   b high"));
  EXPECT_THAT(text, HasSubstr("1                             10"));
  EXPECT_THAT(text, HasSubstr("100"));
  EXPECT_THAT(text, HasSubstr(" 0.70 |                                                           b\n"));
  EXPECT_THAT(text, HasSubstr(" 0.00 |a\n"));
}

TEST(CurveChartTest, CurvesThatMeetAreMarkedAndOneSizeIsEnough) {
  const std::string text = DrawText({"", "x", {5}, {{"one", {0.3}}, {"other", {0.3}}}});
  EXPECT_THAT(text, HasSubstr("*"));
  EXPECT_THAT(text, HasSubstr("0.30 |"));
}

TEST(CurveChartTest, APictureHasEachCurveInAColourOfItsOwn) {
  const std::string folder = Folder();
  const std::string path = folder + "/a.png";
  ASSERT_TRUE(WritePng(Two(), path));
  EXPECT_GT(Count(path, 31, 119, 180), 1000);
  EXPECT_GT(Count(path, 255, 127, 14), 1000);
  EXPECT_EQ(Count(path, 44, 160, 44), 0);
  EXPECT_GT(Count(path, 0, 0, 0), 1000);
  std::filesystem::remove_all(folder);
}

TEST(CurveChartTest, AFileThatCannotBeWrittenIsNamed) {
  const std::string folder = Folder();
  const Status written = WritePng(Two(), folder + "/none/a.png");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Code::kUnavailable);
  EXPECT_THAT(written.error().message, HasSubstr(folder + "/none/a.png"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace tiercel
