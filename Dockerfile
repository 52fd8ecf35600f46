# Training on NVIDIA GPUs. Needs the NVIDIA Container Toolkit; never built or run by us.
#
#   docker build -t simsiam_tf .
#   docker run --gpus all -v "$PWD/my_images:/images:ro" -v "$PWD/runs:/runs" simsiam_tf \
#     simsiam-train --recipe=r18 --dataset=folder --data_dir=/images --workdir=/runs/mine
FROM python:3.12-slim

WORKDIR /simsiam_tf
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt "tensorflow[and-cuda]>=2.20,<2.22"
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Files of a run belong to the user that runs the container: docker run --user "$(id -u):$(id -g)".
ENV HOME=/tmp
CMD ["simsiam-train", "--help"]
