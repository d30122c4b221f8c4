"""The blocks of published networks, written small: how many norms are left in each is known, and why."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.models.export.fold.support import Net, assert_folds, assert_stays, chain, conv, images


def conv_norm(inputs, outputs, kernel=1, norm=nn.BatchNorm2d, **settings):
    return chain(nn.Conv2d(inputs, outputs, kernel, bias=False, **settings), norm(outputs))


def test_resnet_bottleneck_with_downsampling_leaves_none():
    net = Net(
        lambda net, x: F.relu(net.c(F.relu(net.b(F.relu(net.a(x))))) + net.down(x)),
        a=conv_norm(4, 2),
        b=conv_norm(2, 2, 3, padding=1, stride=2),
        c=conv_norm(2, 8),
        down=conv_norm(4, 8, stride=2),
    )
    assert_folds(net, images(), found=4)


def test_densenet_layers_leave_the_norm_before_each_activation():
    """norm, relu, conv: a relu is in the way. Two layers keep one norm each, the transition and the end one each."""

    def layer(inputs):
        return chain(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            conv(8, 4, padding=1),
        )

    def forward(net, x):
        x = net.stem(x)
        x = torch.cat([x, net.one(x)], 1)
        x = torch.cat([x, net.two(x)], 1)
        return net.last(net.transition(x)).relu().mean((2, 3))

    net = Net(
        forward,
        stem=chain(conv(4, 4, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        one=layer(4),
        two=layer(8),
        transition=chain(nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AvgPool2d(2)),
        last=nn.BatchNorm2d(6),
    )
    folded = assert_stays(net, images(), "does not commute with", found=7, left=3)
    # The last norm goes through the pool into the transition's convolution; DenseNet's own stands behind a
    # concatenation.
    assert [item.where for item in folded.report.left] == ["one.0", "two.0", "transition.0"]


def test_preactivation_block_leaves_the_norm_that_reads_the_residual_stream():
    net = Net(
        lambda net, x: x + net.b(net.q(net.a(net.p(x).relu())).relu()),
        p=nn.BatchNorm2d(4),
        a=conv(padding=1),
        q=nn.BatchNorm2d(4),
        b=conv(padding=1),
    )
    folded = assert_stays(net, images(), found=2)
    assert folded.report.left[0].where == "p"


def test_mobilenet_inverted_residual_leaves_none():
    net = Net(
        lambda net, x: x + net.project(F.relu6(net.depthwise(F.relu6(net.expand(x))))),
        expand=conv_norm(4, 8),
        depthwise=conv_norm(8, 8, 3, padding=1, groups=8),
        project=conv_norm(8, 4),
    )
    assert_folds(net, images(), found=3)


def test_efficientnet_block_with_squeeze_and_excitation_leaves_none():
    def forward(net, x):
        y = F.silu(net.depthwise(F.silu(net.expand(x))))
        gate = torch.sigmoid(net.up(F.silu(net.reduce(y.mean((2, 3), keepdim=True)))))
        return x + net.project(y * gate)

    net = Net(
        forward,
        expand=conv_norm(4, 8),
        depthwise=conv_norm(8, 8, 5, padding=2, groups=8),
        reduce=nn.Conv2d(8, 2, 1),
        up=nn.Conv2d(2, 8, 1),
        project=conv_norm(8, 4),
    )
    assert_folds(net, images(), found=3)


def test_inception_block_leaves_none():
    net = Net(
        lambda net, x: torch.cat(
            [F.relu(net.a(x)), F.relu(net.c(F.relu(net.b(x)))), F.relu(net.d(F.avg_pool2d(x, 3, 1, 1)))], 1
        ),
        a=conv_norm(4, 2),
        b=conv_norm(4, 3),
        c=conv_norm(3, 2, (1, 7), padding=(0, 3)),
        d=conv_norm(4, 2),
    )
    assert_folds(net, images(), found=4)


def test_inception_block_with_one_norm_behind_its_concatenation_leaves_none():
    net = Net(
        lambda net, x: net.norm(torch.cat([net.a(x), F.avg_pool2d(net.b(x), 2, 1)], 1)).relu(),
        a=conv(4, 2, 2),
        b=conv(4, 3, 1),
        norm=nn.BatchNorm2d(5),
    )
    assert_folds(net, images())


def test_repvgg_block_leaves_none():
    net = Net(
        lambda net, x: F.relu(net.dense(x) + net.point(x) + net.identity(x)),
        dense=conv_norm(4, 4, 3, padding=1, groups=2),
        point=conv_norm(4, 4, 1, groups=2),
        identity=nn.BatchNorm2d(4),
    )
    folded = assert_folds(net, images(), found=3)
    assert folded.calls("conv2d") == 2


def test_mobileone_block_that_starts_its_sum_at_zero_leaves_none():
    def forward(net, x):
        out = net.identity(x) + 0
        for branch in net.branches:
            out = out + branch(x)
        return F.gelu(out)

    branches = nn.ModuleList(conv_norm(4, 4, 3, padding=1, groups=4) for _ in range(2))
    assert_folds(Net(forward, identity=nn.BatchNorm2d(4), branches=branches), images(), found=3)


def test_fastvit_mixer_that_subtracts_its_norm_leaves_none():
    net = Net(
        lambda net, x: x + net.gamma * (net.mix(x) + net.identity(x) - net.norm(x)),
        mix=conv_norm(4, 4, 3, padding=1, groups=4),
        identity=nn.BatchNorm2d(4),
        norm=nn.BatchNorm2d(4),
        gamma=nn.Parameter(torch.rand(4, 1, 1)),
    )
    folded = assert_folds(net, images(), found=3)
    assert folded.calls("mul") == folded.calls("sub") == 0


def test_levit_attention_leaves_none():
    """Linear layers whose norms see (rows * tokens, channels); rows are dynamic."""

    class LinearNorm(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.linear = nn.Linear(inputs, outputs, bias=False)
            self.norm = nn.BatchNorm1d(outputs)

        def forward(self, x):
            x = self.linear(x)
            return self.norm(x.flatten(0, 1)).reshape_as(x)

    def forward(net, x):
        rows, tokens, _ = x.shape
        q, k, v = net.qkv(x).view(rows, tokens, 2, -1).split([3, 3, 4], dim=3)
        attention = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * 0.5 + net.bias).softmax(-1)
        mixed = (attention @ v.transpose(1, 2)).transpose(1, 2).reshape(rows, tokens, 8)
        x = x + net.project(F.hardswish(mixed))
        return net.head(net.norm(x.mean(1)))

    net = Net(
        forward,
        qkv=LinearNorm(4, 20),
        project=LinearNorm(8, 4),
        bias=nn.Parameter(torch.randn(2, 5, 5)),
        norm=nn.BatchNorm1d(4),
        head=nn.Linear(4, 3),
    )
    assert_folds(net, torch.zeros(2, 5, 4), found=3)


def test_pointnet_transform_leaves_none():
    def forward(net, x):
        y = F.relu(net.b2(net.c2(F.relu(net.b1(net.c1(x))))))
        y = y.max(2, keepdim=True)[0].view(-1, 8)
        turn = net.out(F.relu(net.b3(net.fc(y)))) + net.identity
        return x.transpose(1, 2) @ turn.view(-1, 3, 3)

    net = Net(
        forward,
        c1=nn.Conv1d(3, 4, 1),
        b1=nn.BatchNorm1d(4),
        c2=nn.Conv1d(4, 8, 1),
        b2=nn.BatchNorm1d(8),
        fc=nn.Linear(8, 4),
        b3=nn.BatchNorm1d(4),
        out=nn.Linear(4, 9),
        identity=nn.Buffer(torch.eye(3).reshape(1, 9)),
    )
    assert_folds(net, torch.zeros(2, 3, 7), found=3)


def test_shufflenet_unit_leaves_none():
    def forward(net, x):
        kept, worked = x.chunk(2, dim=1)
        worked = F.relu(net.b(net.d(F.relu(net.a(worked)))))
        out = torch.cat([kept, worked], 1)
        rows, channels, height, width = out.shape
        return (
            out.view(rows, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(rows, channels, height, width)
        )

    net = Net(forward, a=conv_norm(2, 2), d=conv_norm(2, 2, 3, padding=1, groups=2), b=conv_norm(2, 2))
    assert_folds(net, images(), found=3)


def test_unet_level_leaves_none():
    net = Net(
        lambda net, x: net.after(
            torch.cat([skip := F.relu(net.a(x)), net.up(F.relu(net.b(F.max_pool2d(skip, 2))))], 1)
        ),
        a=conv_norm(4, 4, 3, padding=1),
        b=conv_norm(4, 8, 3, padding=1),
        up=chain(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4)),
        after=conv_norm(8, 4, 3, padding=1),
    )
    assert_folds(net, images(), found=4)


def test_recurrent_classifier_with_a_norm_on_its_features_leaves_none():
    net = Net(
        lambda net, x: net.head(net.norm(net.project(x).transpose(1, 2)).mean(2)),
        project=nn.Linear(4, 6),
        norm=nn.BatchNorm1d(6),
        head=nn.Linear(6, 3),
    )
    assert_folds(net, torch.zeros(2, 7, 4))
