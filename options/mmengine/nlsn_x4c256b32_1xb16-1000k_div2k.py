# NLSN x4 on mmengine alone: as x2, but for the scale.

_base_ = 'nlsn_x2c256b32_1xb16-1000k_div2k.py'
scale = 4

model = dict(generator=dict(upscale=scale))
train_dataloader = dict(
    dataset=dict(
        dataroot_lq=f'datasets/DIV2K/DIV2K_train_LR_bicubic_X{scale}_sub.lmdb', scale=scale, gt_size=48 * scale
    )
)
val_dataloader = dict(
    dataset=dict(
        dataroot_lq=f'datasets/benchmark/Set5/LR_bicubic/X{scale}', filename_tmpl='{}' + f'x{scale}', scale=scale
    )
)
val_evaluator = dict(crop_border=scale)
