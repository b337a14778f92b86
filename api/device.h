// What this build and machine can compute with.
#pragma once

#include <string>

#include "dsv3.h"
#include "ggml-lite/status.h"
#include "model/device.h"

namespace dsv3::api {

// Lines of dsv3_version().
std::string describe_devices();

// The device that options ask for. Unsupported, Device or NotFound: this build or machine has not got it.
lite::Result<Device> read_device(const dsv3_model_options& options);

}  // namespace dsv3::api
