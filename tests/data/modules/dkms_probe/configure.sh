#!/bin/sh
echo "#define PROBED \"$1\"" > src/probed.h
