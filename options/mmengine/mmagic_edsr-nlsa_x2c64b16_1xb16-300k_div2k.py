# mmagic's EDSR with attention after every eighth block: the recipe of mmagic's edsr_x2c64b16_1xb16-300k_div2k.py.

_base_ = 'mmagic_nlsn_x2c256b32_1xb16-1000k_div2k.py'

model = dict(
    generator=dict(
        _delete_=True,
        type='WithNLSA',
        arch=dict(
            type='mmagic.EDSRNet',
            in_channels=3,
            out_channels=3,
            mid_channels=64,
            num_blocks=16,
            upscale_factor=2,
            res_scale=1,
            rgb_mean=[0.4488, 0.4371, 0.4040],
            rgb_std=[1.0, 1.0, 1.0],
        ),
        after='body.*[7::8]',  # every eighth block, as in NLSN
        nlsa=dict(n_hashes=4, chunk_size=144, reduction=4, res_scale=0.1),
    )
)
train_cfg = dict(max_iters=300000)
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999)))
param_scheduler = dict(milestones=[200000])
