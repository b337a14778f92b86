// What this build and machine can compute with.
#pragma once

#include <string>

#include "dsv3.h"
#include "ggml-lite/status.h"
#include "model/device.h"

namespace dsv3::api {

// Lines of dsv3_version().
std::string describe_devices();

// The device that options ask for, and `chosen`: its name, and of "auto" what it is and why. Unsupported, Device or NotFound:
// this build or machine has not got it.
lite::Result<Device> read_device(const dsv3_model_options& options, std::string* chosen);

// So many GPUs that need not be there: they say what they would take, and run nothing.
Device planning_device(int gpus);

}  // namespace dsv3::api
