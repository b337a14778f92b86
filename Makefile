# make demo    install what is missing, build, convert the demo checkpoint, write a story
# make test    install what is missing, build it also under sanitizers, run every test
# make fuzz    throw changed files at every parser, SECONDS=60 each, or RUNS=N with a fixed seed
# make install [PREFIX=/usr/local] [DESTDIR=]
# make gpu-check   on a machine with a GPU: build for it, test on it, measure it; build/gpu/report.md
# make         build into build/bin; CUDA=ON: with the CUDA backend, [ARCHITECTURES="80;89;90;120"] its GPUs
.PHONY: all setup demo test release configure install cuda-kernels gpu-check sanitize fuzz tsan accuracy format clean

JOBS ?= $(shell nproc)
CMAKE_BUILD = cmake --build $(1) -j $(JOBS)

CUDA ?= OFF
ARCHITECTURE_OPTION = $(if $(ARCHITECTURES),-DCMAKE_CUDA_ARCHITECTURES="$(ARCHITECTURES)")

all: release

setup:
	@scripts/setup.sh

release: configure
	$(call CMAKE_BUILD,build/release)

configure:
	@cmake -S . -B build/release -DDSV3_CUDA=$(CUDA) $(ARCHITECTURE_OPTION) -DCMAKE_RUNTIME_OUTPUT_DIRECTORY=$(CURDIR)/build/bin \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/lib

PREFIX ?= /usr/local
install: release
	DESTDIR=$(DESTDIR) cmake --install build/release --prefix $(PREFIX)

# What nvcc makes of cuda/: nothing else of the build depends on it, and tests run the same sources on the host.
cuda-kernels:
	cmake -S . -B build/cuda -DDSV3_CUDA=ON $(ARCHITECTURE_OPTION) -DDSV3_TESTS=OFF
	$(call CMAKE_BUILD,build/cuda) --target dsv3_cuda

gpu-check:
	@python3 scripts/gpu_check.py

# The same sources by another compiler, every warning an error, under the address and undefined-behaviour sanitizers.
sanitize:
	cmake -S . -B build/sanitize -DDSV3_SANITIZE=ON -DDSV3_FUZZ=ON -DDSV3_WERROR=ON -DCMAKE_C_COMPILER=clang \
	  -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1"
	$(call CMAKE_BUILD,build/sanitize)

# Every parser of files nobody vouches for under libFuzzer and the sanitizers.
SECONDS ?= 60
fuzz: sanitize
	/usr/bin/python3 tests/fuzz/run.py build/sanitize/bin $(if $(RUNS),--runs $(RUNS),--seconds $(SECONDS))

# Sessions in several threads under the thread sanitizer, which libarcher tells of OpenMP's barriers.
tsan: release
	cmake -S . -B build/tsan -DDSV3_TSAN=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1"
	$(call CMAKE_BUILD,build/tsan) --target dsv3-threads
	build/bin/dsv3-convert -q --force examples/demo-model build/tsan/demo.dsv3
	OMP_TOOL_LIBRARIES=libarcher.so OMP_WAIT_POLICY=passive \
	  TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" build/tsan/bin/dsv3-threads build/tsan/demo.dsv3

demo: setup
	@$(MAKE) --no-print-directory configure
	$(call CMAKE_BUILD,build/release) --target dsv3-cli dsv3-convert
	build/bin/dsv3-convert --force examples/demo-model build/demo.dsv3
	@echo
	@echo '  build/bin/dsv3 run build/demo.dsv3 -n 200 -s 12 -p "It is a truth universally acknowledged, that"'
	@echo
	build/bin/dsv3 run build/demo.dsv3 -n 200 -s 12 -p "It is a truth universally acknowledged, that"

test: setup
	@scripts/test.sh

# Measured error of every golden case: the table of docs/accuracy.md.
accuracy: release
	/usr/bin/python3 tests/accuracy.py build/bin

format:
	git ls-files '*.cpp' '*.h' '*.c' | xargs clang-format -i

clean:
	rm -rf build
