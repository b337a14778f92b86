// The C API of measured ceilings.
#include "ggml-lite/cpu/ceilings.h"

#include "api/handles.h"
#include "ggml-lite/machine.h"

using namespace dsv3::api;
using dsv3::Status;

struct dsv3_meter {
  std::unique_ptr<lite::CeilingMeter> meter;
};

dsv3_status dsv3_meter_new(const dsv3_model* model, int32_t n_threads, dsv3_meter** meter) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_meter_new", "model");
    if (!meter) return null_argument("dsv3_meter_new", "meter");
    if (n_threads == 0) n_threads = int32_t(lite::core_processors().size());
    LITE_TRY(in_range("dsv3_meter_new", "n_threads", n_threads, 1, 1024));
    auto m = std::make_unique<dsv3_meter>();
    LITE_ASSIGN(m->meter, lite::CeilingMeter::create(n_threads, model->device.isa));
    *meter = m.release();
    return {};
  });
}

dsv3_status dsv3_meter_measure(dsv3_meter* meter, dsv3_ceilings* ceilings) {
  return call([&]() -> Status {
    if (!meter) return null_argument("dsv3_meter_measure", "meter");
    if (!ceilings) return null_argument("dsv3_meter_measure", "ceilings");
    const lite::Ceilings c = meter->meter->measure();
    dsv3_ceilings out = {};
    out.read_GBps = c.read_GBps;
    out.f32_GFLOPS = c.f32_GFLOPS;
    out.matrix_GFLOPS = c.matrix_GFLOPS;
    return write_struct("dsv3_ceilings", out, ceilings);
  });
}

void dsv3_meter_free(dsv3_meter* meter) {
  delete meter;
}
