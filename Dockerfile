# docker build -t meddino . && docker run --rm meddino
# PyTorch's wheels bring CUDA with them: for a GPU the host needs its driver and the NVIDIA Container Toolkit alone.
FROM python:3.11-slim

# torch.compile, which nnU-Net switches on, calls a compiler
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# Any user may run it: caches go to HOME, and PyTorch asks for a user's name
ENV HOME=/home/user USER=user
RUN mkdir --mode=1777 /home/user

# what `meddino env` sets, so that nnU-Net's own commands find the trainers as well
ENV OMP_WAIT_POLICY=passive \
    nnUNet_extTrainer=/usr/local/lib/python3.11/site-packages/nnunetv2_meddino/nnunet_ext

COPY . /source
RUN pip install --no-cache-dir /source && rm -rf /source && test -d "$nnUNet_extTrainer" && meddino --help

WORKDIR /work
CMD ["meddino", "demo"]
