"""The encoder as a graph of OpenVINO, with linear adapters, masks and encodings of distances among its inputs.

The weights are those of the fused copy in float32 (`backends/fused/encoder.py`); nothing is traced and no file is read.
Legend: B batch, T mel frames, T' encoder frames, F mel bins, C channels, D width, H heads, P head width with its
padding, A adapters (1 or B), R bottleneck.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.backends.fused.attention import AttentionPart
from overtone.backends.fused.encoder import FusedLayer
from overtone.backends.fused.parts import ConvolutionPart, FeedForwardPart, Norm, Product
from overtone.backends.fused.subsampling import convolution
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.subsampling import STRIDE, ConvSubsampling

Node = Any
"""A value of the graph."""


class EncoderGraph:
    """`model` takes what `backends/openvino/encoder.py` gives by these names, i a layer's number:

    mel [B, F, T]; frames0 … framesN [B, 1, T, 1], one on speech before and after every stage of the subsampling;
    speech [B, T', 1]; marks [B, 1, 1 or T', T'], what is added to the scores; distances_i [1, H, 2T'-1, P];
    down_i [A, R, D], bias_i [A, 1, R] and up_i [A, D, R]. Its output is x [B, T', D].
    """

    def __init__(self, encoder: ConformerEncoder, layers: list[FusedLayer], dtype: torch.dtype) -> None:
        import openvino
        from openvino import opset13

        self.openvino: Any = openvino
        self.op: Any = opset13
        self.narrow = openvino.Type.bf16 if dtype is torch.bfloat16 else openvino.Type.f32
        self.inputs: list[Node] = []
        self.masks: dict[int, Node] = {}
        assert isinstance(encoder.pre_encode, ConvSubsampling)
        first = layers[0].attention
        self.width, self.heads, self.padded = first.out.weight.size(0), first.heads, first.padded_width
        x = self.subsampling(encoder.pre_encode, encoder.scale)
        self.speech = self.input("speech", [-1, -1, 1])
        self.marks = self.input("marks", [-1, 1, -1, -1])
        self.skew = self.skewing(x)
        for number, layer in enumerate(layers):
            x = self.layer(x, layer, number)
        if encoder.out_proj is not None:
            x = self.product(x, Product(encoder.out_proj.weight.detach(), encoder.out_proj.bias.detach()))
        self.model = openvino.Model([self.op.result(x)], self.inputs, "encoder")

    # Values

    def input(self, name: str, shape: list[int], kind: Any = None) -> Node:
        """An input of the graph; -1 in its shape is any size."""
        kind = kind or self.openvino.Type.f32
        node = self.op.parameter(self.openvino.PartialShape(shape), kind, name=name)
        node.get_output_tensor(0).set_names({name})
        self.inputs.append(node)
        return node

    def narrow_input(self, name: str, shape: list[int]) -> Node:
        """The same in the dtype of the products, cast to float32."""
        return self.op.convert(self.input(name, shape, self.narrow), "f32")

    def constant(self, tensor: Tensor) -> Node:
        """A constant of any shape, in float32."""
        return self.op.constant(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))

    def whole(self, *numbers: int) -> Node:
        """Whole numbers as a constant."""
        return self.op.constant(np.array(numbers, dtype=np.int64))

    # Parts

    def affine(self, x: Node, weight: Tensor, bias: Tensor | None) -> Node:
        """x [B, T', in] · weightᵀ [out, in] + bias [out]."""
        y = self.op.matmul(x, self.constant(weight), False, True)
        return y if bias is None else self.op.add(y, self.constant(bias.view(1, 1, -1)))

    def product(self, x: Node, product: Product) -> Node:
        """x [B, T', in] -> [B, T', out]."""
        return self.affine(x, product.weight, product.bias)

    def normed(self, x: Node, epsilon: float) -> Node:
        """Layer norm without gain and bias: x [B, T', D] -> [B, T', D]."""
        return self.op.mvn(x, self.whole(-1), True, epsilon, "INSIDE_SQRT")

    def normed_product(self, normed: Node, norm: Norm, weight: Tensor, bias: Tensor | None) -> Node:
        """The product of a layer norm: normed [B, T', in], weight [out, in], bias [out] -> [B, T', out].

        `normed` lacks the norm's gain and bias, which go into the weight and bias of the product.
        """
        weight = weight.double()
        shift = weight @ norm.bias.double()
        return self.affine(normed, weight * norm.weight.double(), shift if bias is None else shift + bias.double())

    def subsampling(self, module: ConvSubsampling, scale: float) -> Node:
        """The input `mel` [B, F, T] -> x [B, T', D] times `scale`."""
        op = self.op
        mel = self.input("mel", [-1, -1, -1])
        x = op.unsqueeze(op.transpose(mel, self.whole(0, 2, 1)), self.whole(1))  # [B, 1, T, F]
        x = self.convolved(self.masked(x, 0), module, 0, strided=True)
        x = self.masked(op.relu(x), 1)
        for stage in range(module.stages - 1):
            index = 2 + stage * (3 if module.depthwise else 2)
            x = self.convolved(x, module, index, strided=True)
            if module.depthwise:
                x = self.masked(x, stage + 2)
                x = self.convolved(x, module, index + 1, strided=False)
            x = self.masked(op.relu(x), stage + 2)
        weight = module.out.weight.detach().unflatten(1, (module.channels, -1)).transpose(1, 2).flatten(1)
        x = op.reshape(op.transpose(x, self.whole(0, 2, 3, 1)), self.whole(0, 0, weight.size(1)), True)
        return self.affine(x, weight.double() * scale, module.out.bias.detach().double() * scale)

    def masked(self, x: Node, stage: int) -> Node:
        """x [B, C, T, F], zero on padding."""
        if stage not in self.masks:
            self.masks[stage] = self.input(f"frames{stage}", [-1, 1, -1, 1])
        return self.op.multiply(x, self.masks[stage])

    def convolved(self, x: Node, module: ConvSubsampling, index: int, *, strided: bool) -> Node:
        """x [B, C, T, F] -> [B, C, T, F] or, where strided, [B, C, T/2, F/2]."""
        op, conv = self.op, convolution(module, index)
        before, after = ([module.before] * 2, [module.after] * 2) if strided else ([0, 0], [0, 0])
        strides = [STRIDE, STRIDE] if strided else [1, 1]
        weight = conv.weight.detach()
        if conv.groups > 1:
            y = op.group_convolution(x, self.constant(weight.unsqueeze(1)), strides, before, after, [1, 1])
        else:
            y = op.convolution(x, self.constant(weight), strides, before, after, [1, 1])
        return y if conv.bias is None else op.add(y, self.constant(conv.bias.view(1, -1, 1, 1)))

    def layer(self, x: Node, layer: FusedLayer, number: int) -> Node:
        """x [B, T', D] -> [B, T', D]."""
        assert isinstance(layer.convolution, ConvolutionPart)
        x = self.feed_forward(x, layer.feed_forward1)
        x = self.attention(x, layer.attention, number)
        x = self.convolution(x, layer.convolution)
        x = self.feed_forward(x, layer.feed_forward2)
        norm = layer.norm_out
        y = self.op.multiply(self.normed(x, norm.epsilon), self.constant(norm.weight.view(1, 1, -1)))
        return self.adapted(self.op.add(y, self.constant(norm.bias.view(1, 1, -1))), number)

    def adapted(self, y: Node, number: int) -> Node:
        """y + up·swish(down·norm(y) + bias) with each row's own: zeros add zero."""
        op = self.op
        down = self.narrow_input(f"down{number}", [-1, -1, self.width])
        bias = self.narrow_input(f"bias{number}", [-1, 1, -1])
        up = self.narrow_input(f"up{number}", [-1, self.width, -1])
        inner = op.swish(op.add(op.matmul(self.normed(y, 1e-5), down, False, True), bias))
        return op.add(y, op.matmul(inner, up, False, True))

    def feed_forward(self, x: Node, part: FeedForwardPart) -> Node:
        """x [B, T', D] -> [B, T', D]."""
        norm, expand = part.norm, part.expand
        inner = self.normed_product(self.normed(x, norm.epsilon), norm, expand.weight, expand.bias)
        return self.op.add(x, self.product(self.op.swish(inner), part.contract))

    def convolution(self, x: Node, part: ConvolutionPart) -> Node:
        """x [B, T', D] -> [B, T', D]."""
        op, norm, gate = self.op, part.norm, part.gate
        normed = self.normed(x, norm.epsilon)
        biases = [None, None] if gate.bias is None else list(gate.bias.chunk(2))
        value, opening = (
            self.normed_product(normed, norm, weight, bias)
            for weight, bias in zip(gate.weight.chunk(2), biases, strict=True)
        )
        y = op.multiply(op.multiply(value, op.sigmoid(opening)), self.speech)
        kernel, bias, (left, right) = part.filter.kernel, part.filter.bias, part.filter.outside
        assert bias is not None
        y = op.transpose(y, self.whole(0, 2, 1))  # [B, D, T']
        y = op.group_convolution(y, self.constant(kernel), [1], [left], [right], [1])
        y = op.swish(op.add(y, self.constant(bias.view(1, -1, 1))))
        return op.add(x, self.product(op.transpose(y, self.whole(0, 2, 1)), part.project))

    def attention(self, x: Node, part: AttentionPart, number: int) -> Node:
        """x [B, T', D] -> [B, T', D].

        The padding columns of the heads carry the second bias of relative attention, as in `AttentionCore`.
        """
        op, norm = self.op, part.norm
        normed = self.normed(x, norm.epsilon)
        assert part.padded.bias is not None
        query, key, value = (
            self.by_head(self.normed_product(normed, norm, weight, bias))
            for weight, bias in zip(part.padded.weight.chunk(3), part.padded.bias.chunk(3), strict=True)
        )
        distances = self.narrow_input(f"distances{number}", [1, self.heads, -1, self.padded])
        by_distance = self.shifted(op.matmul(query, distances, False, True))
        scores = op.add(op.matmul(query, key, False, True), op.add(by_distance, self.marks))
        attended = op.transpose(op.matmul(op.softmax(scores, -1), value, False, False), self.whole(0, 2, 1, 3))
        attended = op.reshape(attended, self.whole(0, 0, self.heads * self.padded), True)
        weight = part.out.weight.unflatten(1, (self.heads, -1))
        weight = F.pad(weight, (0, self.padded - weight.size(2))).flatten(1)
        return op.add(x, self.affine(op.multiply(attended, self.speech), weight, part.out.bias))

    def by_head(self, x: Node) -> Node:
        """[B, T', H·P] -> [B, H, T', P]."""
        divided = self.op.reshape(x, self.whole(0, 0, self.heads, self.padded), True)
        return self.op.transpose(divided, self.whole(0, 2, 1, 3))

    def skewing(self, x: Node) -> dict[str, Node]:
        """Nodes computed from T' for `shifted`, the same in all layers."""
        op = self.op
        frames = op.gather(op.shape_of(x, "i64"), self.whole(1), self.op.constant(np.int64(0)))
        first = op.subtract(frames, self.whole(1))
        row = op.multiply(first, self.whole(2))  # 2T'-2
        return {
            "frames": frames,
            "first": first,
            "last": op.add(first, op.multiply(frames, row)),
            "flat": self.whole(0, 0, -1),
            "rows": op.concat([self.whole(0, 0), frames, row], 0),
        }

    def shifted(self, by_distance: Node) -> Node:
        """[B, H, T', 2T'-1] -> [B, H, T', T']: out[i, j] = in[i, T'-1-i+j]; T' is more than one.

        Read as one line from its T'-1th number on, in rows that are one shorter.
        """
        op, skew = self.op, self.skew
        line = op.reshape(by_distance, skew["flat"], True)
        line = op.slice(line, skew["first"], skew["last"], self.whole(1), self.whole(2))
        rows = op.reshape(line, skew["rows"], True)
        return op.slice(rows, self.whole(0), skew["frames"], self.whole(1), self.whole(3))
