// The C API of measured ceilings.
#include "ggml-lite/cpu/ceilings.h"

#include "api/handles.h"
#include "ggml-lite/machine.h"

using namespace dsv3::api;
using dsv3::Status;

struct dsv3_meter {
  std::unique_ptr<lite::Meter> host;
  std::vector<std::unique_ptr<lite::Meter>> gpus;
};

dsv3_status dsv3_meter_new(const dsv3_model* model, int32_t n_threads, dsv3_meter** meter) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_meter_new", "model");
    if (!meter) return null_argument("dsv3_meter_new", "meter");
    if (n_threads == 0) n_threads = int32_t(lite::core_processors().size());
    LITE_TRY(in_range("dsv3_meter_new", "n_threads", n_threads, 1, 1024));
    auto m = std::make_unique<dsv3_meter>();
    LITE_ASSIGN(m->host, lite::make_cpu_meter(n_threads, model->device.isa));
    for (const dsv3::Gpu& gpu : model->device.gpus) {
      LITE_ASSIGN(std::unique_ptr<lite::Meter> one, gpu.meter());
      m->gpus.push_back(std::move(one));
    }
    *meter = m.release();
    return {};
  });
}

dsv3_status dsv3_meter_measure(dsv3_meter* meter, dsv3_ceilings* ceilings) {
  return call([&]() -> Status {
    if (!meter) return null_argument("dsv3_meter_measure", "meter");
    if (!ceilings) return null_argument("dsv3_meter_measure", "ceilings");
    LITE_ASSIGN(const lite::Ceilings c, meter->host->measure());
    dsv3_ceilings out = {};
    out.read_GBps = c.read_GBps;
    out.f32_GFLOPS = c.f32_GFLOPS;
    out.matrix_GFLOPS = c.matrix_GFLOPS;
    for (size_t i = 0; i < meter->gpus.size(); ++i) {
      LITE_ASSIGN(const lite::Ceilings gpu, meter->gpus[i]->measure());
      const auto least = [&](double* so_far, double next) { *so_far = i ? std::min(*so_far, next) : next; };
      least(&out.gpu_copy_GBps, gpu.read_GBps);
      least(&out.gpu_matrix_GFLOPS, gpu.matrix_GFLOPS);
      least(&out.link_GBps, gpu.link_GBps);
    }
    return write_struct("dsv3_ceilings", out, ceilings);
  });
}

dsv3_status dsv3_session_bound(const dsv3_session* session, int64_t context, const dsv3_ceilings* ceilings,
                               dsv3_bound* bound) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_bound", "session");
    if (!ceilings) return null_argument("dsv3_session_bound", "ceilings");
    if (!bound) return null_argument("dsv3_session_bound", "bound");
    LITE_TRY(in_range("dsv3_session_bound", "context", context, 0, INT32_MAX));
    dsv3_ceilings c;
    LITE_TRY(read_options("dsv3_ceilings", ceilings, &c));
    std::vector<double> bandwidth(session->session->layout().memory.size(), 1e9 * c.gpu_copy_GBps);
    bandwidth[0] = 1e9 * c.read_GBps;
    if (!(c.read_GBps > 0) || (bandwidth.size() > 1 && !(c.gpu_copy_GBps > 0 && c.link_GBps > 0)))
      return lite::invalid_argument("dsv3_session_bound: expected ceilings above 0, as a meter gives them");
    const dsv3::DecodeSpeed speed = session->session->decode_speed(context, bandwidth, 1e9 * c.link_GBps);
    dsv3_bound out = {};
    out.seconds = speed.seconds;
    for (const double bytes : speed.read) out.bytes += bytes;
    return write_struct("dsv3_bound", out, bound);
  });
}

void dsv3_meter_free(dsv3_meter* meter) {
  delete meter;
}
