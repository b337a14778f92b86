#!/bin/sh
# Puts what building dsv3 needs beside the sources, into .deps/, for a machine that reaches no packages: run it on a Debian
# machine, then carry the folder. Libraries are linked from their archives, so that nothing of .deps/ is needed to run.
set -eu
cd "$(dirname "$0")/.."
rm -rf .deps
mkdir -p .deps/packages
cd .deps/packages
apt-get download -q nlohmann-json3-dev libcli11-dev doctest-dev libpcre2-dev libutf8proc-dev libxxhash-dev pkgconf-bin libpkgconf3
for package in *.deb; do dpkg -x "$package" ..; done
cd ..
rm -rf packages
find . -name '*.so' -type l -delete  # links to what has not been fetched
rm -rf usr/share/doc usr/share/man usr/lib/x86_64-linux-gnu/libpcre2-16* usr/lib/x86_64-linux-gnu/libpcre2-32*
du -sh .
